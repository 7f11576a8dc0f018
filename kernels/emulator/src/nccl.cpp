// A stand-in for NCCL: bytes between the emulated devices of threads or processes of one machine,
// through files of memory. Of all that NCCL does, this is communicators that do not block, grouped
// sends and receives of bytes, and their ends.
//
// As with the real one an operation is in progress until somebody asks how it is going, and stays
// so for ever where a rank never comes. It refuses what would block, calls outside of a group,
// addresses that are not on the device, and messages of another length than is waited for. A test
// can let it fail (`emulator_nccl_set`).
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

extern "C" int emulator_enqueue(void* stream, void (*work)(void*), void (*drop)(void*), void*);
extern "C" int emulator_is_on_device(const void* address, uint64_t bytes);
extern "C" void emulator_count(const char* name, uint64_t amount);
extern "C" int cuStreamSynchronize(void* stream);

namespace {

// Of ncclResult_t.
enum Result : int {
    SUCCESS = 0,
    UNHANDLED_CUDA_ERROR = 1,
    SYSTEM_ERROR = 2,
    INVALID_ARGUMENT = 4,
    INVALID_USAGE = 5,
    REMOTE_ERROR = 6,
    IN_PROGRESS = 7,
};

constexpr int BYTES = 1; // ncclUint8
constexpr unsigned MAGIC = 0xcafebeef;

// What a test may let go wrong.
enum Fault : int {
    NONE,
    NO_ID,
    NO_COMMUNICATOR,
    OPERATION_FAILS,
    WRONG_BYTE,
    NO_BYTES, // nothing that is sent arrives
};

struct Settings {
    int version = 23203;
    Fault fault = NONE;
};

// `FORGELM_EMULATOR_NCCL_FAULT` is for tests that start another program.
Settings settings_at_start() {
    Settings settings;
    if (const char* fault = std::getenv("FORGELM_EMULATOR_NCCL_FAULT"))
        settings.fault = Fault(std::atoi(fault));
    return settings;
}

Settings settings = settings_at_start();

struct UniqueId {
    char internal[128];
};

// The first fields of ncclConfig_t, which every version since 2.14 has.
struct Config {
    size_t size;
    unsigned magic, version;
    int blocking;
};

struct Part {
    bool is_sent;
    char* address;
    size_t bytes;
    int peer;
};

struct Communicator {
    std::string id;
    int rank, n_ranks;
    bool is_linked = false, is_posted = false;
    std::vector<Part> parts; // of the operation in progress
    void* stream = nullptr;
    std::map<int, uint64_t> n_sent, n_received; // messages by peer
    int failed = SUCCESS;
    std::string words;
};

// One lock for everything: calls are short, and none waits for another rank.
std::mutex mutex;
std::set<Communicator*>& communicators() {
    static std::set<Communicator*>& all = *new std::set<Communicator*>;
    return all;
}

struct Group {
    int depth = 0;
    std::map<Communicator*, std::vector<Part>> parts;
    std::map<Communicator*, void*> streams;
};
Group& group() {
    static thread_local Group* group = nullptr;
    if (!group) group = new Group; // see `OfThread` of the driver: nothing here begins as other than 0
    return *group;
}

std::string path(const Communicator& c, const std::string& rest) {
    return "/dev/shm/forgelm-nccl-" + c.id + "-" + rest;
}

std::string message(const Communicator& c, int from, int to, uint64_t number) {
    return path(c, std::to_string(from) + "-" + std::to_string(to) + "-" + std::to_string(number));
}

std::string place(const Communicator& c, int rank) { return path(c, "rank" + std::to_string(rank)); }

bool exists(const std::string& file) {
    struct stat facts;
    return stat(file.c_str(), &facts) == 0;
}

// Whole or not at all: it gets its name when it is written.
bool write_file(const std::string& file, const char* bytes, size_t n) {
    std::string unfinished = file + ".unfinished";
    FILE* to = std::fopen(unfinished.c_str(), "wb");
    if (!to) return false;
    bool is_written = std::fwrite(bytes, 1, n, to) == n;
    is_written = std::fclose(to) == 0 && is_written;
    return is_written && std::rename(unfinished.c_str(), file.c_str()) == 0;
}

bool read_file(const std::string& file, std::vector<char>& bytes) {
    FILE* from = std::fopen(file.c_str(), "rb");
    if (!from) return false;
    std::fseek(from, 0, SEEK_END);
    bytes.resize(size_t(std::ftell(from)));
    std::fseek(from, 0, SEEK_SET);
    bool is_read = std::fread(bytes.data(), 1, bytes.size(), from) == bytes.size();
    std::fclose(from);
    return is_read;
}

int fail(Communicator& c, int result, const std::string& words) {
    c.failed = result;
    c.words = words;
    c.parts.clear();
    return result;
}

struct Arrived {
    char* address;
    std::vector<char> bytes;
};

int post(Communicator& c) {
    // What was asked of the stream before is done before the bytes go.
    if (cuStreamSynchronize(c.stream)) return fail(c, UNHANDLED_CUDA_ERROR, "the stream failed");
    for (const Part& part : c.parts) {
        if (!part.is_sent || settings.fault == NO_BYTES) continue;
        std::vector<char> bytes(part.address, part.address + part.bytes);
        if (settings.fault == WRONG_BYTE) bytes[0] ^= 1;
        std::string file = message(c, c.rank, part.peer, c.n_sent[part.peer]++);
        if (!write_file(file, bytes.data(), bytes.size()))
            return fail(c, SYSTEM_ERROR, "no room for a message in /dev/shm");
        emulator_count("messages of NCCL", 1);
        emulator_count("bytes of NCCL", part.bytes);
    }
    c.is_posted = true;
    return SUCCESS;
}

int receive(Communicator& c) {
    std::map<int, uint64_t> number = c.n_received;
    for (const Part& part : c.parts)
        if (!part.is_sent && !exists(message(c, part.peer, c.rank, number[part.peer]++)))
            return IN_PROGRESS;
    for (const Part& part : c.parts) {
        if (part.is_sent) continue;
        std::string file = message(c, part.peer, c.rank, c.n_received[part.peer]++);
        auto* arrived = new Arrived{part.address, {}};
        bool is_read = read_file(file, arrived->bytes);
        unlink(file.c_str());
        if (!is_read || arrived->bytes.size() != part.bytes) {
            delete arrived;
            return fail(c, INVALID_USAGE, "a message is not as long as what is waited for");
        }
        auto work = [](void* state) {
            auto* arrived = static_cast<Arrived*>(state);
            std::memcpy(arrived->address, arrived->bytes.data(), arrived->bytes.size());
        };
        auto drop = [](void* state) { delete static_cast<Arrived*>(state); };
        if (emulator_enqueue(c.stream, work, drop, arrived))
            return fail(c, UNHANDLED_CUDA_ERROR, "the stream failed");
    }
    c.parts.clear();
    return SUCCESS;
}

// As far as it gets without waiting.
int progress(Communicator& c) {
    if (c.failed) return c.failed;
    if (!c.is_linked) {
        for (int rank = 0; rank < c.n_ranks; rank++)
            if (!exists(place(c, rank))) return IN_PROGRESS;
        c.is_linked = true;
    }
    if (c.parts.empty()) return SUCCESS;
    if (settings.fault == OPERATION_FAILS)
        return fail(c, REMOTE_ERROR, "Call to recv from a peer failed : Connection reset by peer");
    if (!c.is_posted)
        if (int failure = post(c)) return failure;
    return receive(c);
}

Communicator* find(void* handle) {
    auto found = communicators().find(static_cast<Communicator*>(handle));
    return found == communicators().end() ? nullptr : *found;
}

int add(void* handle, Part part, int type, void* stream) {
    std::lock_guard<std::mutex> guard(mutex);
    Communicator* c = find(handle);
    if (!c || type != BYTES || part.peer < 0 || part.peer >= c->n_ranks) return INVALID_ARGUMENT;
    if (c->failed) return c->failed;
    if (part.peer == c->rank || part.bytes == 0) return INVALID_ARGUMENT; // never asked here
    if (group().depth == 0 || !c->is_linked || !c->parts.empty()) return INVALID_USAGE;
    if (!emulator_is_on_device(part.address, part.bytes)) return INVALID_ARGUMENT;
    group().parts[c].push_back(part);
    group().streams[c] = stream;
    return SUCCESS;
}

int end(void* handle) {
    std::lock_guard<std::mutex> guard(mutex);
    Communicator* c = find(handle);
    if (!c) return INVALID_ARGUMENT;
    unlink(place(*c, c->rank).c_str());
    communicators().erase(c);
    delete c;
    return SUCCESS;
}

} // namespace

API void emulator_nccl_set(int version, int fault) {
    std::lock_guard<std::mutex> guard(mutex);
    settings.version = version;
    settings.fault = Fault(fault);
}

API int ncclGetVersion(int* version) {
    *version = settings.version;
    return SUCCESS;
}

API int ncclGetUniqueId(UniqueId* id) {
    if (settings.fault == NO_ID) return SYSTEM_ERROR;
    std::random_device random;
    std::memset(id, 0, sizeof *id);
    std::snprintf(id->internal, sizeof id->internal, "%08x%08x", random(), random());
    return SUCCESS;
}

API int ncclCommInitRankConfig(void** handle, int n_ranks, UniqueId id, int rank,
                               const Config* config) {
    std::lock_guard<std::mutex> guard(mutex);
    *handle = nullptr;
    if (config->magic != MAGIC || config->size < sizeof(Config) || config->version < 21400)
        return INVALID_ARGUMENT;
    if (config->blocking != 0) return INVALID_USAGE;
    if (settings.fault == NO_COMMUNICATOR) return SYSTEM_ERROR;
    if (rank < 0 || rank >= n_ranks) return INVALID_ARGUMENT;
    auto* c = new Communicator;
    c->id = id.internal;
    c->rank = rank;
    c->n_ranks = n_ranks;
    if (exists(place(*c, rank)) || !write_file(place(*c, rank), "", 0)) {
        delete c;
        return INVALID_USAGE;
    }
    communicators().insert(c);
    *handle = c;
    return IN_PROGRESS;
}

API int ncclCommGetAsyncError(void* handle, int* state) {
    std::lock_guard<std::mutex> guard(mutex);
    Communicator* c = find(handle);
    if (!c) return INVALID_ARGUMENT;
    *state = progress(*c);
    return SUCCESS;
}

API int ncclCommFinalize(void* handle) {
    std::lock_guard<std::mutex> guard(mutex);
    Communicator* c = find(handle);
    if (!c) return INVALID_ARGUMENT;
    return c->parts.empty() ? SUCCESS : IN_PROGRESS;
}

API int ncclCommDestroy(void* handle) { return end(handle); }

API int ncclCommAbort(void* handle) { return end(handle); }

// The texts are those of NVIDIA's library.
API const char* ncclGetErrorString(int result) {
    switch (result) {
    case SUCCESS: return "no error";
    case UNHANDLED_CUDA_ERROR:
        return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case SYSTEM_ERROR: return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case INVALID_ARGUMENT: return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case INVALID_USAGE: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case REMOTE_ERROR:
        return "remote process exited or there was a network error";
    case IN_PROGRESS: return "NCCL operation in progress";
    }
    return "unknown result code";
}

API const char* ncclGetLastError(void* handle) {
    static thread_local char words[256];
    std::lock_guard<std::mutex> guard(mutex);
    Communicator* c = find(handle);
    std::snprintf(words, sizeof words, "%s", c ? c->words.c_str() : "");
    return words;
}

API int ncclGroupStart() {
    group().depth++;
    return SUCCESS;
}

API int ncclGroupEnd() {
    if (group().depth == 0) return INVALID_USAGE;
    if (--group().depth > 0) return SUCCESS;
    std::lock_guard<std::mutex> guard(mutex);
    bool is_empty = group().parts.empty();
    for (auto& [c, parts] : group().parts) {
        c->parts = parts;
        c->stream = group().streams[c];
        c->is_posted = false;
    }
    group().parts.clear();
    group().streams.clear();
    return is_empty ? SUCCESS : IN_PROGRESS;
}

API int ncclSend(const void* from, size_t n, int type, int peer, void* handle, void* stream) {
    auto* address = static_cast<char*>(const_cast<void*>(from));
    return add(handle, {true, address, n, peer}, type, stream);
}

API int ncclRecv(void* to, size_t n, int type, int peer, void* handle, void* stream) {
    return add(handle, {false, static_cast<char*>(to), n, peer}, type, stream);
}
