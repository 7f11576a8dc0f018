// What the files of the stand-in driver share: results, memory, streams, and the checks with which
// every function of the driver begins.
//
// The driver does what the real one does for one device, on the CPU, and refuses what that one
// refuses: ranges outside an allocation, handles that are not alive, launches beyond the limits
// of the device, calls that a capture forbids.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

// A function of the driver. Its result is a `driver::Result`.
#define API extern "C" __attribute__((visibility("default"))) int
// First line of every function of the driver: an injected failure, or no cuInit before it.
#define BEGIN()                                                   \
    if (int failure = driver::begin(__func__, false)) return failure
// The same, for functions that work on the current context.
#define BEGIN_IN_CONTEXT()                                        \
    if (int failure = driver::begin(__func__, true)) return failure

namespace driver {

// Those of CUresult that this driver gives.
enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    FILE_NOT_FOUND = 301,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    STREAM_CAPTURE_UNMATCHED = 903,
    CAPTURED_EVENT = 907,
};

using Address = unsigned long long; // on the device: here, an address like any other

// ---- the device ----

struct Device {
    int n_devices = 1;
    std::string name = "forgelm emulated device";
    int major = 9, minor = 0;
    size_t total_bytes = size_t(4) << 30;
    int n_multiprocessors = 4;

    // Largest shared memory of a block, when a kernel asks for more than the 48 KiB of all.
    int shared_bytes_max() const;
};
Device& device();

// What the driver keeps for a thread. It is one variable that does not begin as zeros: those of a
// library belong to the `__shared__` variables of its kernels, and `emulator::poison_statics` fills
// them with NaN.
struct OfThread {
    int not_zero = 1;
    int n_captures = 0; // that the thread has begun and not ended
    void* context = nullptr;
};
OfThread& of_thread();

// What the calling thread may do: `SUCCESS`, an injected failure, or what is missing.
int begin(const char* function, bool needs_context);

// ---- memory ----

enum class Place { DEVICE, PINNED };

// Allocates and fills with NaN: nothing clears memory on a device either.
int allocate(Address* address, size_t bytes, Place place);
int release(Address address, Place place);
// Whether the range lies in one allocation of that kind.
bool is_inside(Address address, size_t bytes, Place place);
size_t used_bytes();
void set_memory_limit(size_t bytes);

// ---- what tests ask about ----

struct Counters {
    std::mutex mutex;
    std::map<std::string, uint64_t> values; // a kernel is `launch NAME`
};
Counters& counters();
void count(const std::string& name, uint64_t amount = 1);

// ---- streams ----

// Where work is done: when it is given, or as late as the rules of streams allow.
enum StreamMode : int { EAGER = 0, DEFERRED = 1 };
void set_stream_mode(int mode);

using Work = std::function<void()>;

// What a stream or an event must have reached. An event that was never recorded has none.
struct Mark {
    struct Stream* stream;
    bool done = false;
    double milliseconds = 0;
};

struct Task {
    Work work;
    std::shared_ptr<Mark> waits_for; // of another stream, before `work`
};

struct Capture {
    std::vector<Work> works;
    std::vector<struct Stream*> streams; // that take part, the first began it
    bool invalid = false;
};

struct Stream {
    std::deque<Task> pending;
    std::shared_ptr<Capture> capture; // null when it captures nothing
};

// The stream of a handle, null if it is no stream; 0 is the default stream.
Stream* find_stream(void* handle);
// Gives work to a stream: done now, later, or recorded.
int enqueue(Stream* stream, Work work);
// Waits for all work of a stream; refused while it captures.
int synchronize(Stream* stream);
// Waits for all work of all streams.
void synchronize_all();
// Whether some stream captures work of the calling thread's making.
bool is_capturing();

// Handles that are alive, for every kind of object that callers hold.
template <class T> class Handles {
  public:
    T* add(T* object) {
        std::lock_guard<std::mutex> guard(mutex_);
        alive_.insert(object);
        return object;
    }
    T* find(void* handle) {
        std::lock_guard<std::mutex> guard(mutex_);
        auto found = alive_.find(static_cast<T*>(handle));
        return found == alive_.end() ? nullptr : *found;
    }
    bool remove(void* handle) {
        std::lock_guard<std::mutex> guard(mutex_);
        return alive_.erase(static_cast<T*>(handle)) != 0;
    }

  private:
    std::mutex mutex_;
    std::set<T*> alive_;
};

} // namespace driver
