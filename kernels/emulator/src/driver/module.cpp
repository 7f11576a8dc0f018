// Modules and launches. Images are not executed: a kernel runs from the table of kernels that were
// compiled into this library, but only if the image is one that the real driver would take for
// this device and, where names can be read in it, has the kernel.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>

#include "driver.hpp"
#include "launch.hpp"

namespace driver {

namespace {

struct Module {
    std::vector<char> image; // empty where its length is not known
    bool has_names;
};

struct Function {
    Module* module;
    std::string name;
    emulator::Kernel kernel;
    int dynamic_bytes_max = 48 * 1024;
};

Handles<Module>& modules() {
    static Handles<Module>& modules = *new Handles<Module>;
    return modules;
}

Handles<Function>& functions() {
    static Handles<Function>& functions = *new Handles<Function>;
    return functions;
}

// Offsets in the header of an ELF file of 64 bits.
constexpr size_t ELF_MACHINE = 18, ELF_FLAGS = 48, ELF_SECTIONS = 40, ELF_SECTION_BYTES = 58;
constexpr size_t ELF_N_SECTIONS = 60;
constexpr uint16_t MACHINE_CUDA = 190;

template <class T> T read_at(const void* image, size_t offset) {
    T value;
    std::memcpy(&value, static_cast<const char*>(image) + offset, sizeof value);
    return value;
}

bool begins_with(const void* image, const char* bytes, size_t n) {
    return std::memcmp(image, bytes, n) == 0;
}

// A cubin of CUDA 12 has the number of its architecture in the low or in the second byte of the
// flags; it runs on devices of the same major number and at least the same minor one.
int check_architecture(const void* image) {
    uint32_t flags = read_at<uint32_t>(image, ELF_FLAGS);
    int number = int(flags & 0xFF);
    if (number < 50) number = int(flags >> 8 & 0xFF);
    if (number / 10 != device().major || number % 10 > device().minor) return NO_BINARY_FOR_GPU;
    return SUCCESS;
}

int load(const void* image, Module& module) {
    module.has_names = false;
    if (!image) return INVALID_VALUE;
    if (begins_with(image, "\x7f""ELF", 4)) {
        if (read_at<uint16_t>(image, ELF_MACHINE) != MACHINE_CUDA) return SUCCESS; // of a test
        if (int failure = check_architecture(image)) return failure;
        size_t bytes = read_at<uint64_t>(image, ELF_SECTIONS) +
                       size_t(read_at<uint16_t>(image, ELF_SECTION_BYTES)) *
                           read_at<uint16_t>(image, ELF_N_SECTIONS);
        auto* begin = static_cast<const char*>(image);
        module.image.assign(begin, begin + bytes);
        module.has_names = true;
        return SUCCESS;
    }
    if (begins_with(image, "\x50\xed\x55\xba", 4)) return SUCCESS; // a fatbin, often compressed
    if (begins_with(image, "//", 2) || begins_with(image, ".version", 8)) {
        auto* text = static_cast<const char*>(image);
        module.image.assign(text, text + std::strlen(text));
        module.has_names = true;
        return SUCCESS;
    }
    return INVALID_IMAGE;
}

// The name as a whole word: in a cubin after ".text." and before a zero, in PTX behind ".entry ".
bool has_kernel(const Module& module, const std::string& name) {
    if (!module.has_names) return true;
    for (const std::string& before : {std::string(".text."), std::string(".entry ")}) {
        std::string wanted = before + name;
        auto at = module.image.begin();
        for (;;) {
            at = std::search(at, module.image.end(), wanted.begin(), wanted.end());
            if (at == module.image.end()) break;
            at += std::ptrdiff_t(wanted.size());
            if (at == module.image.end() || *at == 0 || *at == '(') return true;
        }
    }
    return false;
}

struct Shape {
    unsigned x, y, z;
};

bool fits(const Function& function, Shape grid, Shape block, unsigned shared_bytes) {
    if (!grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z) return false;
    if (grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535) return false;
    if (block.x > 1024 || block.y > 1024 || block.z > 64) return false;
    uint64_t n_threads = uint64_t(block.x) * block.y * block.z;
    if (n_threads > function.kernel.max_threads) return false;
    return int64_t(shared_bytes) <= function.dynamic_bytes_max;
}

int launch(Function* function, Shape grid, Shape block, unsigned shared_bytes, Stream* stream,
           void** parameters) {
    if (!function || !stream) return INVALID_HANDLE;
    if (!modules().find(function->module)) return INVALID_HANDLE;
    if (!fits(*function, grid, block, shared_bytes)) return INVALID_VALUE;
    if (function->kernel.n_parameters && !parameters) return INVALID_VALUE;
    count("launch " + function->name);
    // Parameters are copied by the launch; the caller may change them when it returns.
    auto values = std::make_shared<std::vector<std::vector<char>>>();
    for (unsigned i = 0; i < function->kernel.n_parameters; i++) {
        auto* begin = static_cast<char*>(parameters[i]);
        values->emplace_back(begin, begin + function->kernel.parameter_sizes[i]);
    }
    return enqueue(stream, [name = function->name, kernel = function->kernel, values, grid, block,
                            shared_bytes] {
        std::vector<void*> addresses;
        for (auto& value : *values) addresses.push_back(value.data());
        addresses.push_back(nullptr);
        emulator::launch_addresses(name.c_str(), kernel, addresses.data(),
                                   dim3(grid.x, grid.y, grid.z), dim3(block.x, block.y, block.z),
                                   shared_bytes);
    });
}

int resident_blocks(const Function& function, int n_threads, size_t shared_bytes) {
    if (n_threads <= 0 || unsigned(n_threads) > function.kernel.max_threads) return 0;
    if (int64_t(shared_bytes) > function.dynamic_bytes_max) return 0;
    int by_threads = 2048 / ((n_threads + 31) / 32 * 32);
    size_t of_multiprocessor = size_t(device().shared_bytes_max()) + 1024;
    int by_shared = int(of_multiprocessor / (shared_bytes + 1024));
    return std::min({by_threads, by_shared, 32});
}

} // namespace
} // namespace driver

using namespace driver;

API cuModuleLoadData(void** handle, const void* image) {
    BEGIN_IN_CONTEXT();
    auto module = std::make_unique<Module>();
    if (int failure = load(image, *module)) return failure;
    *handle = modules().add(module.release());
    return SUCCESS;
}

API cuModuleLoadDataEx(void** handle, const void* image, unsigned, int*, void**) {
    return cuModuleLoadData(handle, image);
}

API cuModuleLoad(void** handle, const char* path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) return FILE_NOT_FOUND;
    std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    bytes.resize(bytes.size() + 64); // a text ends with a zero, a header is never cut off
    return cuModuleLoadData(handle, bytes.data());
}

API cuModuleUnload(void* handle) {
    BEGIN_IN_CONTEXT();
    if (!modules().remove(handle)) return INVALID_HANDLE;
    delete static_cast<Module*>(handle);
    return SUCCESS;
}

API cuModuleGetFunction(void** handle, void* module_handle, const char* name) {
    BEGIN_IN_CONTEXT();
    Module* module = modules().find(module_handle);
    if (!module) return INVALID_HANDLE;
    auto found = emulator::kernels().find(name);
    if (found == emulator::kernels().end() || !has_kernel(*module, name)) return NOT_FOUND;
    *handle = functions().add(new Function{module, name, found->second});
    return SUCCESS;
}

API cuModuleGetGlobal_v2(Address*, size_t*, void*, const char*) {
    BEGIN_IN_CONTEXT();
    return NOT_FOUND; // kernels have no variables of their own
}

// 8 is the largest dynamic shared memory.
API cuFuncSetAttribute(void* handle, int attribute, int value) {
    BEGIN_IN_CONTEXT();
    Function* function = functions().find(handle);
    if (!function) return INVALID_HANDLE;
    if (attribute != 8) return SUCCESS;
    if (value < 0 || value > device().shared_bytes_max()) return INVALID_VALUE;
    function->dynamic_bytes_max = value;
    return SUCCESS;
}

API cuFuncGetAttribute(int* value, int attribute, void* handle) {
    BEGIN_IN_CONTEXT();
    Function* function = functions().find(handle);
    if (!function) return INVALID_HANDLE;
    *value = 0;
    if (attribute == 0) *value = int(function->kernel.max_threads);
    if (attribute == 6) *value = device().major * 10 + device().minor;
    if (attribute == 8) *value = function->dynamic_bytes_max;
    return SUCCESS;
}

// Where a parameter lies among all, each at a multiple of its own size, and how long it is.
API cuFuncGetParamInfo(void* handle, size_t index, size_t* offset, size_t* bytes) {
    BEGIN_IN_CONTEXT();
    Function* function = functions().find(handle);
    if (!function) return INVALID_HANDLE;
    if (index >= function->kernel.n_parameters) return INVALID_VALUE;
    size_t end = 0;
    for (size_t i = 0; i <= index; i++) {
        *bytes = function->kernel.parameter_sizes[i];
        *offset = (end + *bytes - 1) / *bytes * *bytes;
        end = *offset + *bytes;
    }
    return SUCCESS;
}

API cuFuncSetCacheConfig(void* handle, int) {
    BEGIN_IN_CONTEXT();
    return functions().find(handle) ? SUCCESS : INVALID_HANDLE;
}

API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n_blocks, void* handle, int n_threads,
                                                size_t shared_bytes) {
    BEGIN_IN_CONTEXT();
    Function* function = functions().find(handle);
    if (!function) return INVALID_HANDLE;
    *n_blocks = resident_blocks(*function, n_threads, shared_bytes);
    return SUCCESS;
}

API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n_blocks, void* handle,
                                                         int n_threads, size_t shared_bytes,
                                                         unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(n_blocks, handle, n_threads, shared_bytes);
}

API cuOccupancyMaxPotentialBlockSize(int* n_blocks, int* n_threads, void* handle,
                                     size_t (*shared_of_block)(int), size_t shared_bytes,
                                     int n_threads_max) {
    BEGIN_IN_CONTEXT();
    Function* function = functions().find(handle);
    if (!function) return INVALID_HANDLE;
    *n_threads = int(function->kernel.max_threads);
    if (n_threads_max > 0) *n_threads = std::min(*n_threads, n_threads_max);
    if (shared_of_block) shared_bytes = shared_of_block(*n_threads);
    *n_blocks = resident_blocks(*function, *n_threads, shared_bytes) * device().n_multiprocessors;
    return SUCCESS;
}

API cuOccupancyMaxPotentialBlockSizeWithFlags(int* n_blocks, int* n_threads, void* handle,
                                              size_t (*shared_of_block)(int), size_t shared_bytes,
                                              int n_threads_max, unsigned) {
    return cuOccupancyMaxPotentialBlockSize(n_blocks, n_threads, handle, shared_of_block,
                                            shared_bytes, n_threads_max);
}

API cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, void* handle, int n_blocks, int) {
    BEGIN_IN_CONTEXT();
    if (!functions().find(handle) || n_blocks <= 0) return INVALID_VALUE;
    size_t of_multiprocessor = size_t(device().shared_bytes_max()) + 1024;
    *bytes = of_multiprocessor / size_t(n_blocks) - 1024;
    return SUCCESS;
}

API cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                   void* stream, void** parameters, void** extra) {
    BEGIN_IN_CONTEXT();
    if (extra) return NOT_SUPPORTED;
    return driver::launch(functions().find(handle), {grid_x, grid_y, grid_z},
                          {block_x, block_y, block_z}, shared_bytes, find_stream(stream),
                          parameters);
}

// Blocks run one after the other here, so that they cannot wait for each other.
API cuLaunchCooperativeKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                              unsigned, void*, void**) {
    BEGIN_IN_CONTEXT();
    return NOT_SUPPORTED;
}
