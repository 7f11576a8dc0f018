// Allocations and copies.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.hpp"

namespace driver {

namespace {

// Bytes behind each allocation that nobody may write; looked at when it is released.
constexpr size_t CANARY_BYTES = 256;
constexpr unsigned char CANARY = 0xA5;
// Alignment of what the real driver allocates.
constexpr size_t ALIGNMENT = 512;

struct Allocation {
    size_t bytes;
    Place place;
};

struct Heap {
    std::mutex mutex;
    std::map<Address, Allocation> allocations;
    size_t used = 0, used_high = 0;
    size_t limit = ~size_t(0); // beside the memory of the device
};

Heap& heap() {
    static Heap& heap = *new Heap;
    return heap;
}

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

} // namespace

// Bytes beyond which allocations are refused although `cuMemGetInfo` promises more, as if another
// program had taken them meanwhile. For programs that load this library without knowing it.
size_t hidden_limit() {
    static const size_t limit = [] {
        const char* text = std::getenv("FORGELM_EMULATOR_HIDDEN_LIMIT");
        return text ? size_t(std::strtoull(text, nullptr, 10)) : SIZE_MAX;
    }();
    return limit;
}

int allocate(Address* address, size_t bytes, Place place) {
    if (bytes == 0) return INVALID_VALUE;
    Heap& h = heap();
    {
        std::lock_guard<std::mutex> guard(h.mutex);
        size_t limit = std::min({h.limit, device().total_bytes, hidden_limit()});
        if (place == Place::DEVICE && (h.used > limit || bytes > limit - h.used))
            return OUT_OF_MEMORY;
    }
    size_t padded = (bytes + CANARY_BYTES + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    auto* memory = static_cast<unsigned char*>(std::aligned_alloc(ALIGNMENT, padded));
    if (!memory) return OUT_OF_MEMORY;
    std::memset(memory, 0xFF, bytes);
    std::memset(memory + bytes, CANARY, CANARY_BYTES);
    *address = reinterpret_cast<Address>(memory);
    std::lock_guard<std::mutex> guard(h.mutex);
    h.allocations[*address] = {bytes, place};
    if (place == Place::DEVICE) {
        h.used += bytes;
        h.used_high = std::max(h.used_high, h.used);
    }
    return SUCCESS;
}

int release(Address address, Place place) {
    if (!address) return SUCCESS;
    Heap& h = heap();
    size_t bytes;
    {
        std::lock_guard<std::mutex> guard(h.mutex);
        auto found = h.allocations.find(address);
        if (found == h.allocations.end() || found->second.place != place) return INVALID_VALUE;
        bytes = found->second.bytes;
        if (place == Place::DEVICE) h.used -= bytes;
        h.allocations.erase(found);
    }
    auto* memory = static_cast<unsigned char*>(pointer(address));
    for (size_t i = 0; i < CANARY_BYTES; i++)
        if (memory[bytes + i] != CANARY) {
            std::fprintf(stderr, "emulator: a write behind an allocation of %zu bytes\n", bytes);
            std::abort();
        }
    std::free(memory);
    return SUCCESS;
}

bool is_inside(Address address, size_t bytes, Place place) {
    Heap& h = heap();
    std::lock_guard<std::mutex> guard(h.mutex);
    auto found = h.allocations.upper_bound(address);
    if (found == h.allocations.begin()) return false;
    --found;
    size_t offset = address - found->first;
    const Allocation& allocation = found->second;
    return allocation.place == place && offset <= allocation.bytes &&
           bytes <= allocation.bytes - offset;
}

size_t used_bytes() {
    std::lock_guard<std::mutex> guard(heap().mutex);
    return heap().used;
}

size_t used_bytes_high() {
    std::lock_guard<std::mutex> guard(heap().mutex);
    return heap().used_high;
}

void set_memory_limit(size_t bytes) {
    std::lock_guard<std::mutex> guard(heap().mutex);
    heap().limit = bytes;
}

size_t memory_limit() {
    std::lock_guard<std::mutex> guard(heap().mutex);
    return std::min(heap().limit, device().total_bytes);
}

namespace {

bool on_device(Address address, size_t bytes) { return is_inside(address, bytes, Place::DEVICE); }

bool is_pinned(const void* host, size_t bytes) {
    return is_inside(reinterpret_cast<Address>(host), bytes, Place::PINNED);
}

void count_copy(const char* direction, size_t bytes) {
    count(std::string("copies ") + direction);
    count(std::string("bytes ") + direction, bytes);
}

// Pinned memory is read when the copy runs. The rest is read before the call returns, as the real
// driver stages it.
int copy_to_device(Stream* stream, Address to, const void* from, size_t bytes) {
    if (!stream) return INVALID_HANDLE;
    if (!on_device(to, bytes) || (!from && bytes)) return INVALID_VALUE;
    count_copy("to device", bytes);
    if (is_pinned(from, bytes))
        return enqueue(stream, [=] { std::memcpy(pointer(to), from, bytes); });
    auto* begin = static_cast<const char*>(from);
    auto staged = std::make_shared<std::vector<char>>(begin, begin + bytes);
    return enqueue(stream, [=] { std::memcpy(pointer(to), staged->data(), bytes); });
}

// A copy to memory that is not pinned has happened when the call returns.
int copy_to_host(Stream* stream, void* to, Address from, size_t bytes) {
    if (!stream) return INVALID_HANDLE;
    if (!on_device(from, bytes) || (!to && bytes)) return INVALID_VALUE;
    bool pinned = is_pinned(to, bytes);
    if (!pinned && stream->capture) {
        stream->capture->invalid = true;
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    count_copy("to host", bytes);
    int result = enqueue(stream, [=] { std::memcpy(to, pointer(from), bytes); });
    return result || pinned ? result : synchronize(stream);
}

int copy_on_device(Stream* stream, Address to, Address from, size_t bytes) {
    if (!stream) return INVALID_HANDLE;
    if (!on_device(to, bytes) || !on_device(from, bytes)) return INVALID_VALUE;
    count_copy("on device", bytes);
    return enqueue(stream, [=] { std::memmove(pointer(to), pointer(from), bytes); });
}

template <class T> int fill(Stream* stream, Address to, T value, size_t n) {
    if (!stream) return INVALID_HANDLE;
    if (to % sizeof(T) || !on_device(to, n * sizeof(T))) return INVALID_VALUE;
    count("fills");
    return enqueue(stream, [=] {
        auto* at = static_cast<T*>(pointer(to));
        std::fill(at, at + n, value);
    });
}

int finish(int result) { return result ? result : synchronize(find_stream(nullptr)); }

} // namespace
} // namespace driver

using namespace driver;

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    BEGIN_IN_CONTEXT();
    size_t limit = memory_limit(), used = used_bytes();
    *total = device().total_bytes;
    *free = used < limit ? limit - used : 0;
    return SUCCESS;
}

API cuMemAlloc_v2(Address* address, size_t bytes) {
    BEGIN_IN_CONTEXT();
    if (is_capturing()) return STREAM_CAPTURE_UNSUPPORTED;
    count("allocations");
    return allocate(address, bytes, Place::DEVICE);
}

// As the real driver, which waits for what may still use the memory.
API cuMemFree_v2(Address address) {
    BEGIN_IN_CONTEXT();
    if (is_capturing()) return STREAM_CAPTURE_UNSUPPORTED;
    synchronize_all();
    return release(address, Place::DEVICE);
}

API cuMemAllocManaged(Address* address, size_t bytes, unsigned) {
    return cuMemAlloc_v2(address, bytes);
}

// Stricter than the real driver, which makes an allocation part of the graph.
API cuMemAllocAsync(Address* address, size_t bytes, void* stream) {
    BEGIN_IN_CONTEXT();
    Stream* found = find_stream(stream);
    if (!found) return INVALID_HANDLE;
    if (found->capture) return STREAM_CAPTURE_UNSUPPORTED;
    count("allocations");
    int result = allocate(address, bytes, Place::DEVICE);
    if (result != OUT_OF_MEMORY) return result;
    synchronize_all(); // memory that is given back in the order of streams is there in that order
    return allocate(address, bytes, Place::DEVICE);
}

API cuMemFreeAsync(Address address, void* stream) {
    BEGIN_IN_CONTEXT();
    Stream* found = find_stream(stream);
    if (!found) return INVALID_HANDLE;
    if (found->capture) return STREAM_CAPTURE_UNSUPPORTED;
    if (!on_device(address, 1)) return INVALID_VALUE;
    return enqueue(found, [=] { release(address, Place::DEVICE); });
}

API cuMemHostAlloc(void** host, size_t bytes, unsigned) {
    BEGIN_IN_CONTEXT();
    Address address = 0;
    int result = allocate(&address, bytes, Place::PINNED);
    if (result == SUCCESS) *host = pointer(address);
    return result;
}

API cuMemFreeHost(void* host) {
    BEGIN_IN_CONTEXT();
    synchronize_all();
    return release(reinterpret_cast<Address>(host), Place::PINNED);
}

API cuMemHostGetDevicePointer_v2(Address* address, void* host, unsigned) {
    BEGIN_IN_CONTEXT();
    if (!is_pinned(host, 1)) return INVALID_VALUE;
    *address = reinterpret_cast<Address>(host);
    return SUCCESS;
}

API cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream) {
    BEGIN_IN_CONTEXT();
    return copy_to_device(find_stream(stream), to, from, bytes);
}

API cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream) {
    BEGIN_IN_CONTEXT();
    return copy_to_host(find_stream(stream), to, from, bytes);
}

API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* stream) {
    BEGIN_IN_CONTEXT();
    return copy_on_device(find_stream(stream), to, from, bytes);
}

API cuMemcpyHtoD_v2(Address to, const void* from, size_t bytes) {
    BEGIN_IN_CONTEXT();
    return finish(copy_to_device(find_stream(nullptr), to, from, bytes));
}

API cuMemcpyDtoH_v2(void* to, Address from, size_t bytes) {
    BEGIN_IN_CONTEXT();
    return finish(copy_to_host(find_stream(nullptr), to, from, bytes));
}

API cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) {
    BEGIN_IN_CONTEXT();
    return finish(copy_on_device(find_stream(nullptr), to, from, bytes));
}

API cuMemcpyPeerAsync(Address to, void*, Address from, void*, size_t bytes, void* stream) {
    BEGIN_IN_CONTEXT();
    return copy_on_device(find_stream(stream), to, from, bytes);
}

API cuMemsetD8Async(Address to, unsigned char value, size_t n, void* stream) {
    BEGIN_IN_CONTEXT();
    return fill(find_stream(stream), to, value, n);
}

API cuMemsetD16Async(Address to, unsigned short value, size_t n, void* stream) {
    BEGIN_IN_CONTEXT();
    return fill(find_stream(stream), to, value, n);
}

API cuMemsetD32Async(Address to, unsigned value, size_t n, void* stream) {
    BEGIN_IN_CONTEXT();
    return fill(find_stream(stream), to, value, n);
}

API cuMemsetD8_v2(Address to, unsigned char value, size_t n) {
    BEGIN_IN_CONTEXT();
    return finish(fill(find_stream(nullptr), to, value, n));
}

API cuMemsetD32_v2(Address to, unsigned value, size_t n) {
    BEGIN_IN_CONTEXT();
    return finish(fill(find_stream(nullptr), to, value, n));
}

namespace {

// One side of CUDA_MEMCPY2D: kinds of memory are 1 (host), 2 (device) and 3 (array, refused).
struct Side {
    size_t x_bytes, y;
    unsigned kind;
    const void* host;
    Address address;
    void* array;
    size_t pitch;

    const char* row(size_t i) const {
        const void* begin_of_all = kind == 1 ? host : pointer(address);
        auto* begin = static_cast<const char*>(begin_of_all);
        return begin + (y + i) * pitch + x_bytes;
    }
};

struct Copy2d {
    Side from, to;
    size_t width_bytes, height;
};

} // namespace

// Rows are copied one by one, each under the rules of a plain copy.
API cuMemcpy2DAsync_v2(const Copy2d* copy, void* stream) {
    BEGIN_IN_CONTEXT();
    Stream* s = find_stream(stream);
    const Side &from = copy->from, &to = copy->to;
    if (from.pitch < copy->width_bytes || to.pitch < copy->width_bytes) return INVALID_VALUE;
    for (size_t i = 0; i < copy->height; i++) {
        auto* source = from.row(i);
        auto* target = const_cast<char*>(to.row(i));
        int result = NOT_SUPPORTED;
        if (from.kind == 1 && to.kind == 2)
            result = copy_to_device(s, Address(target), source, copy->width_bytes);
        if (from.kind == 2 && to.kind == 1)
            result = copy_to_host(s, target, Address(source), copy->width_bytes);
        if (from.kind == 2 && to.kind == 2)
            result = copy_on_device(s, Address(target), Address(source), copy->width_bytes);
        if (result) return result;
    }
    return SUCCESS;
}

API cuMemcpy2D_v2(const Copy2d* copy) { return finish(cuMemcpy2DAsync_v2(copy, nullptr)); }

// Hints about managed memory change nothing here.
API cuMemAdvise_v2(Address, size_t, int, uint64_t) {
    BEGIN_IN_CONTEXT();
    return SUCCESS;
}

API cuMemPrefetchAsync_v2(Address, size_t, uint64_t, unsigned, void*) {
    BEGIN_IN_CONTEXT();
    return SUCCESS;
}

// ---- memory pools: all take from the same memory and give back at once ----

namespace {

struct Pool {
    uint64_t attributes[9] = {};
};

Handles<Pool>& pools() {
    static Handles<Pool>& pools = *new Handles<Pool>;
    return pools;
}

Pool* default_pool() {
    static Pool* pool = pools().add(new Pool);
    return pool;
}

} // namespace

API cuDeviceGetDefaultMemPool(void** pool, int) {
    BEGIN();
    *pool = default_pool();
    return SUCCESS;
}

API cuDeviceGetMemPool(void** pool, int ordinal) {
    return cuDeviceGetDefaultMemPool(pool, ordinal);
}

API cuDeviceSetMemPool(int, void* pool) {
    BEGIN();
    return pools().find(pool) ? SUCCESS : INVALID_VALUE;
}

API cuMemPoolCreate(void** pool, const void*) {
    BEGIN();
    *pool = pools().add(new Pool);
    return SUCCESS;
}

API cuMemPoolDestroy(void* pool) {
    BEGIN();
    if (pool == default_pool() || !pools().remove(pool)) return INVALID_VALUE;
    delete static_cast<Pool*>(pool);
    return SUCCESS;
}

API cuMemPoolTrimTo(void* pool, size_t) {
    BEGIN();
    return pools().find(pool) ? SUCCESS : INVALID_VALUE;
}

// 1 to 3 are ints (what may be reused), 4 is the release threshold; the rest are bytes.
API cuMemPoolSetAttribute(void* pool, int attribute, void* value) {
    BEGIN();
    Pool* found = pools().find(pool);
    if (!found || attribute < 1 || attribute > 8) return INVALID_VALUE;
    std::memcpy(&found->attributes[attribute], value, attribute <= 3 ? 4 : 8);
    return SUCCESS;
}

API cuMemPoolGetAttribute(void* pool, int attribute, void* value) {
    BEGIN();
    Pool* found = pools().find(pool);
    if (!found || attribute < 1 || attribute > 8) return INVALID_VALUE;
    if (attribute == 5 || attribute == 7) found->attributes[attribute] = used_bytes();
    if (attribute == 6 || attribute == 8) found->attributes[attribute] = used_bytes_high();
    std::memcpy(value, &found->attributes[attribute], attribute <= 3 ? 4 : 8);
    return SUCCESS;
}

API cuMemAllocFromPoolAsync(Address* address, size_t bytes, void* pool, void* stream) {
    if (!pools().find(pool)) return INVALID_VALUE;
    return cuMemAllocAsync(address, bytes, stream);
}
