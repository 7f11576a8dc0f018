// The device, its context, and the names of errors.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.hpp"

namespace driver {

// One device, or `FORGELM_EMULATOR_DEVICES`.
static Device& made_device() {
    Device& made = *new Device;
    if (const char* n = std::getenv("FORGELM_EMULATOR_DEVICES")) made.n_devices = std::atoi(n);
    return made;
}

Device& device() {
    static Device& device = made_device();
    return device;
}

int Device::shared_bytes_max() const {
    if (major == 8) return minor == 0 ? 166912 : 101376;
    if (major == 12) return 101376;
    return major >= 9 ? 232448 : 49152;
}

namespace {

std::atomic<bool> initialized{false};
std::atomic<int> n_primary_references{0};
char primary_context; // its address is the handle

} // namespace

OfThread& of_thread() {
    static thread_local OfThread of_thread;
    return of_thread;
}

bool is_initialized() { return initialized; }

bool has_context() {
    return of_thread().context == &primary_context && n_primary_references > 0;
}

} // namespace driver

using namespace driver;

API cuInit(unsigned flags) {
    if (flags) return INVALID_VALUE;
    if (device().n_devices == 0) return NO_DEVICE;
    initialized = true;
    BEGIN();
    return SUCCESS;
}

API cuDriverGetVersion(int* version) {
    *version = 12080;
    return SUCCESS;
}

API cuDeviceGetCount(int* count) {
    BEGIN();
    *count = device().n_devices;
    return SUCCESS;
}

API cuDeviceGet(int* handle, int ordinal) {
    BEGIN();
    if (ordinal < 0 || ordinal >= device().n_devices) return INVALID_DEVICE;
    *handle = ordinal;
    return SUCCESS;
}

API cuDeviceGetName(char* name, int bytes, int) {
    BEGIN();
    std::snprintf(name, size_t(bytes), "%s", device().name.c_str());
    return SUCCESS;
}

API cuDeviceGetUuid(char* uuid, int ordinal) {
    BEGIN();
    std::memset(uuid, 7 + ordinal, 16);
    return SUCCESS;
}

API cuDeviceGetUuid_v2(char* uuid, int ordinal) { return cuDeviceGetUuid(uuid, ordinal); }

API cuDeviceTotalMem_v2(size_t* bytes, int) {
    BEGIN();
    *bytes = device().total_bytes;
    return SUCCESS;
}

// Numbers of CUdevice_attribute; those that are not here are 0 on this device.
API cuDeviceGetAttribute(int* value, int attribute, int) {
    BEGIN();
    const Device& d = device();
    switch (attribute) {
    case 1: *value = 1024; break;          // threads of a block
    case 2: case 3: *value = 1024; break;  // block x, y
    case 4: *value = 64; break;            // block z
    case 5: *value = 2147483647; break;    // grid x
    case 6: case 7: *value = 65535; break; // grid y, z
    case 8: *value = 49152; break;         // shared memory of a block without asking
    case 10: *value = 32; break;           // warp
    case 12: case 82: *value = 65536; break; // registers of a block, a multiprocessor
    case 13: *value = 1000000; break;      // clock, kHz
    case 16: *value = d.n_multiprocessors; break;
    case 31: *value = 1; break;            // concurrent kernels
    case 36: *value = 1000000; break;      // clock of memory, kHz
    case 37: *value = 512; break;          // width of the memory bus, bits
    case 38: *value = 4 << 20; break;      // level 2 cache
    case 39: *value = 2048; break;         // threads of a multiprocessor
    case 40: *value = 2; break;            // copy engines
    case 41: *value = 1; break;            // unified addressing
    case 75: *value = d.major; break;
    case 76: *value = d.minor; break;
    case 81: *value = d.shared_bytes_max() + 1024; break; // shared memory of a multiprocessor
    case 97: *value = d.shared_bytes_max(); break;
    case 106: *value = 32; break;          // blocks of a multiprocessor
    case 111: *value = 1024; break;        // shared memory that each block loses
    case 115: *value = 1; break;           // memory pools
    default: *value = 0;
    }
    return SUCCESS;
}

API cuDevicePrimaryCtxRetain(void** context, int) {
    BEGIN();
    n_primary_references++;
    *context = &primary_context;
    return SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(int) {
    BEGIN();
    if (n_primary_references == 0) return INVALID_CONTEXT;
    n_primary_references--;
    return SUCCESS;
}

API cuCtxSetCurrent(void* context) {
    BEGIN();
    if (context && context != &primary_context) return INVALID_CONTEXT;
    of_thread().context = context;
    return SUCCESS;
}

API cuCtxGetCurrent(void** context) {
    BEGIN();
    *context = of_thread().context;
    return SUCCESS;
}

API cuCtxPushCurrent_v2(void* context) { return cuCtxSetCurrent(context); }

API cuCtxPopCurrent_v2(void** context) {
    BEGIN_IN_CONTEXT();
    if (context) *context = of_thread().context;
    of_thread().context = nullptr;
    return SUCCESS;
}

API cuCtxGetDevice(int* handle) {
    BEGIN_IN_CONTEXT();
    *handle = 0;
    return SUCCESS;
}

API cuCtxSetFlags(unsigned) {
    BEGIN_IN_CONTEXT();
    return SUCCESS;
}

API cuCtxGetLimit(size_t* value, int) {
    BEGIN_IN_CONTEXT();
    *value = 0;
    return SUCCESS;
}

API cuCtxSetLimit(int, size_t) {
    BEGIN_IN_CONTEXT();
    return SUCCESS;
}

API cuCtxGetCacheConfig(int* config) {
    BEGIN_IN_CONTEXT();
    *config = 0;
    return SUCCESS;
}

API cuCtxSetCacheConfig(int) {
    BEGIN_IN_CONTEXT();
    return SUCCESS;
}

API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    BEGIN_IN_CONTEXT();
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}

namespace {

struct Description {
    int code;
    const char *name, *text;
};

// The texts are those of NVIDIA's driver.
const Description DESCRIPTIONS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU",
     "no kernel image is available for execution on the device"},
    {FILE_NOT_FOUND, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
     "capture was not initiated in this stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const Description* describe(int code) {
    for (const Description& description : DESCRIPTIONS)
        if (description.code == code) return &description;
    return nullptr;
}

} // namespace

API cuGetErrorName(int code, const char** name) {
    const Description* found = describe(code);
    *name = found ? found->name : nullptr;
    return found ? SUCCESS : INVALID_VALUE;
}

API cuGetErrorString(int code, const char** text) {
    const Description* found = describe(code);
    *text = found ? found->text : nullptr;
    return found ? SUCCESS : INVALID_VALUE;
}
