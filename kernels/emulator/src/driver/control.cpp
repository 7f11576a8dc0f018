// What tests set and ask, through exported functions that no real driver has.
#include <cstdio>
#include <cstring>

#include "driver.hpp"
#include "launch.hpp"

#define CONTROL extern "C" __attribute__((visibility("default")))

namespace driver {

bool is_initialized();
bool has_context();

namespace {

struct Injected {
    int code;
    unsigned n_calls_before;
};

struct Failures {
    std::mutex mutex;
    std::map<std::string, Injected> next;
    int sticky = SUCCESS; // as after a fault of a kernel: all that needs the context fails
};

Failures& failures() {
    static Failures& failures = *new Failures;
    return failures;
}

// cuMemAlloc_v2 is named cuMemAlloc in the headers, thus in tests.
std::string without_version(const char* function) {
    std::string name = function;
    size_t at = name.rfind("_v");
    return at == std::string::npos ? name : name.substr(0, at);
}

int injected_failure(const char* function) {
    Failures& f = failures();
    std::lock_guard<std::mutex> guard(f.mutex);
    if (f.next.empty()) return SUCCESS;
    auto found = f.next.find(without_version(function));
    if (found == f.next.end()) return SUCCESS;
    if (found->second.n_calls_before > 0) {
        found->second.n_calls_before--;
        return SUCCESS;
    }
    int code = found->second.code;
    f.next.erase(found);
    return code;
}

} // namespace

int begin(const char* function, bool needs_context) {
    if (!is_initialized()) return NOT_INITIALIZED;
    if (int code = injected_failure(function)) return code;
    if (!needs_context) return SUCCESS;
    if (!has_context()) return INVALID_CONTEXT;
    std::lock_guard<std::mutex> guard(failures().mutex);
    return failures().sticky;
}

Counters& counters() {
    static Counters& counters = *new Counters;
    return counters;
}

void count(const std::string& name, uint64_t amount) {
    std::lock_guard<std::mutex> guard(counters().mutex);
    counters().values[name] += amount;
}

} // namespace driver

using namespace driver;

CONTROL void emulator_set_schedule(int schedule) { emulator::settings().schedule = schedule; }

CONTROL void emulator_set_async_copies(int mode) { emulator::settings().async_copies = mode; }

CONTROL void emulator_set_seed(uint64_t seed) { emulator::settings().seed = seed; }

CONTROL void emulator_set_threads(unsigned n) { emulator::settings().n_threads = n ? n : 1; }

CONTROL void emulator_set_stream_mode(int mode) { set_stream_mode(mode); }

CONTROL void emulator_set_memory_limit(uint64_t bytes) { set_memory_limit(bytes); }

// The device that cuInit finds; to be called before it.
CONTROL void emulator_set_device(int n_devices, const char* name, int major, int minor,
                                 uint64_t total_bytes) {
    device().n_devices = n_devices;
    device().name = name;
    device().major = major;
    device().minor = minor;
    device().total_bytes = total_bytes;
}

// The call of `function` after `n_calls_before` more gives `code` and does nothing else.
CONTROL void emulator_fail_next(const char* function, int code, unsigned n_calls_before) {
    Failures& f = failures();
    std::lock_guard<std::mutex> guard(f.mutex);
    f.next[without_version(function)] = {code, n_calls_before};
}

// Every call that needs the context gives `code`, until it is set to 0.
CONTROL void emulator_fail_always(int code) {
    std::lock_guard<std::mutex> guard(failures().mutex);
    failures().sticky = code;
}

// Writes `name\tvalue\n` for every counter and returns how many bytes that is in full.
CONTROL uint64_t emulator_counters(char* text, uint64_t bytes) {
    std::string all;
    std::lock_guard<std::mutex> guard(counters().mutex);
    for (const auto& [name, value] : counters().values)
        all += name + "\t" + std::to_string(value) + "\n";
    if (bytes) std::memcpy(text, all.data(), std::min<size_t>(bytes, all.size()));
    return all.size();
}

CONTROL void emulator_reset_counters() {
    std::lock_guard<std::mutex> guard(counters().mutex);
    counters().values.clear();
}

CONTROL uint64_t emulator_used_bytes() { return used_bytes(); }

// Writes the names of all kernels, one a line, and returns how many bytes that is in full.
CONTROL uint64_t emulator_kernels(char* text, uint64_t bytes) {
    std::string all;
    for (const auto& [name, kernel] : emulator::kernels()) all += name + "\n";
    if (bytes) std::memcpy(text, all.data(), std::min<size_t>(bytes, all.size()));
    return all.size();
}

// For the stand-in of cuBLASLt: work on a stream, and whether memory is on the device.
CONTROL int emulator_enqueue(void* stream, void (*work)(void*), void (*drop)(void*), void* state) {
    std::shared_ptr<void> kept(state, drop);
    Stream* found = find_stream(stream);
    if (!found) return INVALID_HANDLE;
    return enqueue(found, [=] { work(kept.get()); });
}

CONTROL int emulator_is_on_device(const void* address, uint64_t bytes) {
    return is_inside(reinterpret_cast<Address>(address), bytes, Place::DEVICE);
}

CONTROL void emulator_count(const char* name, uint64_t amount) { count(name, amount); }
