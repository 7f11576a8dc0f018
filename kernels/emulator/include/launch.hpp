// The table of kernels, and a launch: all blocks of a grid, on one or more threads of the
// operating system.
#pragma once
#include "fibers.hpp"

namespace emulator {

inline std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> table;
    return table;
}

// Launch bounds of the kernels of a source file that are defined and not yet registered: KERNEL
// puts them in, REGISTER takes them out in the same order.
inline std::vector<unsigned>& open_bounds() {
    static std::vector<unsigned> bounds;
    return bounds;
}

struct LaunchBounds {
    explicit LaunchBounds(unsigned max_threads) { open_bounds().push_back(max_threads); }
};

// Calls a kernel with parameters that lie at addresses, as the driver hands them over.
template <class Function> struct Call;
template <class... Parameters> struct Call<void (*)(Parameters...)> {
    template <void (*kernel)(Parameters...), size_t... I>
    static void spread([[maybe_unused]] void** parameters, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_reference_t<Parameters>*>(parameters[I])...);
    }
    template <void (*kernel)(Parameters...)> static void run(void** parameters) {
        spread<kernel>(parameters, std::index_sequence_for<Parameters...>{});
    }
    static constexpr size_t sizes[sizeof...(Parameters) + 1] = {sizeof(Parameters)..., 0};
    static constexpr unsigned n = sizeof...(Parameters);
};

struct Registration {
    Registration(const char* name, void (*entry)(void**), const size_t* sizes, unsigned n) {
        if (open_bounds().empty()) {
            std::fprintf(stderr, "emulator: REGISTER(%s) without a KERNEL before it\n", name);
            std::abort();
        }
        unsigned max_threads = open_bounds().front();
        open_bounds().erase(open_bounds().begin());
        if (!kernels().emplace(name, Kernel{entry, sizes, n, max_threads}).second) {
            std::fprintf(stderr, "emulator: two kernels are named %s\n", name);
            std::abort();
        }
    }
};

// Blocks (with their stacks) that no launch uses now.
struct BlockStore {
    std::mutex mutex;
    std::vector<Block*> free;
};
inline BlockStore& block_store() {
    static BlockStore& store = *new BlockStore; // never destroyed: helpers may still run at exit
    return store;
}

inline Block* take_block() {
    BlockStore& store = block_store();
    std::lock_guard<std::mutex> guard(store.mutex);
    if (!store.free.empty()) {
        Block* taken = store.free.back();
        store.free.pop_back();
        return taken;
    }
    auto* made = new Block{};
    make_stacks(*made);
    return made;
}

inline void give_back_block(Block* given) {
    BlockStore& store = block_store();
    std::lock_guard<std::mutex> guard(store.mutex);
    store.free.push_back(given);
}

struct Grid {
    const Launch* launch;
    std::atomic<uint64_t> next{0};
    uint64_t total() const {
        return uint64_t(launch->grid.x) * launch->grid.y * launch->grid.z;
    }
};

// Runs blocks until none is left; every thread that helps with a grid is in here.
inline void run_blocks(Grid& grid) {
    const Launch& launch = *grid.launch;
    Block* outer = block; // a host callback inside a launch could launch again
    block = take_block();
    poison_statics();
    uint64_t total = grid.total();
    for (uint64_t i; (i = grid.next++) < total;) {
        uint64_t k = (launch.schedule & 3) == REVERSE ? total - 1 - i : i;
        uint64_t row = k / launch.grid.x;
        run_block(launch, {unsigned(k % launch.grid.x), unsigned(row % launch.grid.y),
                           unsigned(row / launch.grid.y)});
    }
    give_back_block(block);
    block = outer;
}

// Threads that wait for a grid to help with. One launch at a time has them; others run alone.
class Helpers {
  public:
    static Helpers& get() {
        static Helpers& helpers = *new Helpers;
        return helpers;
    }

    void run(Grid& grid, unsigned n_wanted) {
        std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
        if (!owner.owns_lock()) return run_blocks(grid);
        {
            std::lock_guard<std::mutex> guard(mutex_);
            while (n_threads_ < n_wanted) {
                std::thread([this] { serve(); }).detach();
                n_threads_++;
            }
            grid_ = &grid;
            n_busy_ = n_threads_;
            round_++;
        }
        wake_.notify_all();
        run_blocks(grid);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return n_busy_ == 0; });
        grid_ = nullptr;
    }

  private:
    void serve() {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return grid_ && round_ != seen; });
            seen = round_;
            Grid& grid = *grid_;
            lock.unlock();
            run_blocks(grid);
            lock.lock();
            if (--n_busy_ == 0) done_.notify_all();
        }
    }

    std::mutex owner_, mutex_;
    std::condition_variable wake_, done_;
    Grid* grid_ = nullptr;
    unsigned n_threads_ = 0, n_busy_ = 0;
    uint64_t round_ = 0;
};

// Below this many CUDA threads a grid is done before another thread would have woken up.
constexpr uint64_t MIN_SHARED_WORK = 8192;

// Runs a kernel whose parameters lie at addresses. The caller has checked the launch.
inline void launch_addresses(const char* name, const Kernel& kernel, void** parameters, dim3 grid,
                             dim3 block_shape, size_t shared_bytes) {
    Settings& s = settings();
    Launch launch{name, &kernel, parameters, grid, block_shape, shared_bytes,
                  s.schedule, s.async_copies, s.seed};
    Grid work{&launch};
    uint64_t n_threads = work.total() * block_shape.x * block_shape.y * block_shape.z;
    unsigned helpers = s.n_threads > 1 ? s.n_threads - 1 : 0;
    if (helpers && work.total() > 1 && n_threads >= MIN_SHARED_WORK)
        Helpers::get().run(work, helpers);
    else
        run_blocks(work);
}

[[noreturn]] inline void refuse(const char* name, const char* what) {
    std::fprintf(stderr, "emulator: launch of %s: %s\n", name, what);
    std::abort();
}

// Runs a kernel by name, with its parameters checked by number and size: what tests in C++ call.
template <class... Arguments>
void launch(const char* name, dim3 grid, dim3 block_shape, size_t shared_bytes,
            Arguments... arguments) {
    auto found = kernels().find(name);
    if (found == kernels().end()) refuse(name, "no such kernel");
    const Kernel& kernel = found->second;
    if (kernel.n_parameters != sizeof...(arguments)) refuse(name, "wrong number of parameters");
    const size_t sizes[] = {sizeof(arguments)..., 0};
    for (unsigned i = 0; i < kernel.n_parameters; i++)
        if (sizes[i] != kernel.parameter_sizes[i]) refuse(name, "a parameter of the wrong size");
    unsigned n_threads = block_shape.x * block_shape.y * block_shape.z;
    if (!n_threads || n_threads > kernel.max_threads) refuse(name, "more threads than its bounds");
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535)
        refuse(name, "a grid that no device takes");
    void* addresses[] = {static_cast<void*>(&arguments)..., nullptr};
    launch_addresses(name, kernel, addresses, grid, block_shape, shared_bytes);
}

// Calls `test` under each of the twelve combinations of schedule and asynchronous copies.
template <class Test> void for_each_combination(Test test) {
    for (int schedule : {FORWARD, REVERSE, RANDOM, GREEDY_FORWARD, GREEDY_REVERSE, GREEDY_RANDOM})
        for (int copies : {LAND_AT_WAIT, LAND_AT_ISSUE}) {
            settings().schedule = schedule;
            settings().async_copies = copies;
            test(schedule, copies);
        }
}

} // namespace emulator
