// Runs the threads of a CUDA block on one CPU thread: a fiber for each, switched at barriers and
// warp collectives only.
//
// A fiber that waits picks the next one that can run and switches to it directly. A fiber that
// ends runs the next thread in place, so that a kernel that never waits needs one stack and no
// switch at all. The order in which threads run is a setting (`Schedule`): a correct kernel gives
// the same bits under every one of them.
//
// x86-64 with the System V calling convention only.
#pragma once
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMULATOR_ASAN 1
#else
#define EMULATOR_ASAN 0
#endif

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern "C" void emulator_switch(void** save, void* load);

namespace emulator {

// Which of the threads that could run does run. The three greedy ones run a warp as far as it
// gets before any other, which shows missing barriers between warps.
enum Schedule : int {
    FORWARD = 0,
    REVERSE = 1,
    RANDOM = 2,
    GREEDY_FORWARD = 4,
    GREEDY_REVERSE = 5,
    GREEDY_RANDOM = 6,
};

// When the bytes of a cp.async arrive: at its wait (a missing wait reads poison) or at once (a
// buffer that is still in use is overwritten).
enum AsyncCopies : int { LAND_AT_WAIT = 0, LAND_AT_ISSUE = 1 };

struct Settings {
    std::atomic<int> schedule{FORWARD};
    std::atomic<int> async_copies{LAND_AT_WAIT};
    std::atomic<uint64_t> seed{1};
    std::atomic<unsigned> n_threads{1}; // of the operating system; results do not depend on it
};
inline Settings& settings() {
    static Settings settings;
    return settings;
}

// A kernel as the table of kernels knows it.
struct Kernel {
    void (*entry)(void** parameters);
    const size_t* parameter_sizes;
    unsigned n_parameters;
    unsigned max_threads; // of a block: its launch bounds
};

struct Launch {
    const char* name;
    const Kernel* kernel;
    void** parameters;
    dim3 grid, block;
    size_t shared_bytes;
    int schedule;
    int async_copies;
    uint64_t seed;
};

enum State : uint8_t { READY, AT_BARRIER, AT_COLLECTIVE, DONE };

// One cp.async whose bytes have not landed yet; `source` is null where zeros are written.
struct PendingCopy {
    void* destination;
    const void* source;
};

struct Fiber {
    void* stack_pointer;
    char* stack; // null until the thread first waits or starts behind one that waits
    uint3 thread;
    unsigned linear; // index of the thread in its block
    State state;
    int barrier_line;
    void* fake_stack; // of AddressSanitizer
    std::vector<PendingCopy> copies;
    std::vector<size_t> groups; // how many copies are in each committed group and those before it
};

struct Warp {
    uint32_t ready;   // lanes that can run
    uint32_t waiting; // lanes that are in a collective
    uint32_t masks[32];
    uint8_t operations[32];
    void* requests[32]; // what each waiting lane brings, on its own stack
};

// A plain build of the largest kernels needs 20 KiB, one with sanitizers several times as much.
constexpr size_t STACK_BYTES = EMULATOR_ASAN ? 512 * 1024 : 128 * 1024;
constexpr size_t PAGE_BYTES = 4096;
constexpr unsigned MAX_BLOCK_THREADS = 1024;
// Bytes behind dynamic shared memory that no kernel may touch.
constexpr size_t CANARY_BYTES = 128;

// All that one operating system thread needs in order to run blocks. Kept and reused: making
// stacks costs more than most launches.
struct Block {
    const Launch* launch;
    uint3 index;
    Fiber* current;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned> order;
    std::vector<char*> free_stacks;
    char* stacks = nullptr;
    char* shared = nullptr;
    size_t shared_capacity = 0;
    dim3 shape{0, 0, 0};
    unsigned n_threads, n_live, n_ready, n_arrived;
    unsigned cursor; // where in `order`, or which lane of the greedy warp, is looked at next
    unsigned greedy_warp;
    uint64_t random;
    void* main_stack_pointer;
    void* main_fake_stack;
    const void* main_stack;
    size_t main_stack_bytes;
};

// The only thread-local variable beside the `__shared__` ones of kernels: see `poison_statics`.
inline thread_local Block* block = nullptr;

inline Fiber& self() { return *block->current; }
inline unsigned lane_of(const Fiber& fiber) { return fiber.linear & 31; }
inline Warp& warp_of(const Fiber& fiber) { return block->warps[fiber.linear >> 5]; }

// Ends the process: what a kernel did cannot be done on a device.
[[noreturn]] inline void die(const char* what) {
    static const char* const NAMES[] = {"runnable", "at a barrier", "in a warp collective",
                                        "ended"};
    std::fprintf(stderr, "emulator: %s; kernel %s, block (%u,%u,%u)", what, block->launch->name,
                 block->index.x, block->index.y, block->index.z);
    if (block->current) std::fprintf(stderr, ", thread %u", block->current->linear);
    std::fprintf(stderr, "\n");
    for (unsigned first = 0; first < block->n_threads;) {
        const Fiber& fiber = block->fibers[first];
        auto line = [](const Fiber& f) { return f.state == AT_BARRIER ? f.barrier_line : 0; };
        unsigned end = first + 1;
        while (end < block->n_threads && block->fibers[end].state == fiber.state &&
               line(block->fibers[end]) == line(fiber))
            end++;
        std::fprintf(stderr, "  threads %u to %u: %s", first, end - 1, NAMES[fiber.state]);
        if (line(fiber)) std::fprintf(stderr, " in line %d", line(fiber));
        std::fprintf(stderr, "\n");
        first = end;
    }
    std::abort();
}

// ---- who runs next ----

inline uint64_t next_random() {
    uint64_t& state = block->random;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

inline bool is_ready(unsigned linear) {
    return block->warps[linear >> 5].ready >> (linear & 31) & 1;
}

inline Fiber& pick_in_order() {
    Block& b = *block;
    for (;;) {
        while (b.cursor < b.n_threads) {
            unsigned linear = b.order[b.cursor++];
            if (is_ready(linear)) return b.fibers[linear];
        }
        b.cursor = 0;
        if (b.launch->schedule == RANDOM)
            for (unsigned i = b.n_threads; i > 1; i--)
                std::swap(b.order[i - 1], b.order[next_random() % i]);
    }
}

inline Fiber& pick_in_warp() {
    Block& b = *block;
    bool reverse = b.launch->schedule == GREEDY_REVERSE;
    unsigned n_warps = unsigned(b.warps.size());
    while (!b.warps[b.greedy_warp].ready) {
        unsigned steps = b.launch->schedule == GREEDY_RANDOM ? 1 + next_random() % n_warps : 1;
        b.greedy_warp = (b.greedy_warp + (reverse ? n_warps - steps : steps)) % n_warps;
        b.cursor = 0;
    }
    for (;; b.cursor++) {
        unsigned lane = (reverse ? 31 - b.cursor : b.cursor) & 31;
        if (b.warps[b.greedy_warp].ready >> lane & 1) {
            b.cursor++;
            return b.fibers[b.greedy_warp * 32 + lane];
        }
    }
}

inline Fiber& pick() {
    if (!block->n_ready) {
        block->current = nullptr;
        die("nothing can run: a divergent barrier, or lanes that are missing in a collective");
    }
    return block->launch->schedule & 4 ? pick_in_warp() : pick_in_order();
}

inline void set_waiting(Fiber& fiber, State state) {
    fiber.state = state;
    warp_of(fiber).ready &= ~(1u << lane_of(fiber));
    block->n_ready--;
}

inline void set_ready(Fiber& fiber) {
    fiber.state = READY;
    warp_of(fiber).ready |= 1u << lane_of(fiber);
    block->n_ready++;
}

// ---- switching ----

// Saves the registers that a function must keep and the stack, and goes on where `load` was saved.
asm(R"(.text
.weak emulator_switch
.hidden emulator_switch
.type emulator_switch,@function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, . - emulator_switch
)");

// AddressSanitizer must know of every change of stack. `fake_stack` keeps its notes about the one
// that is left, and is null when that one is never entered again.
inline void before_switch(void** fake_stack, const void* stack, size_t bytes) {
#if EMULATOR_ASAN
    __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
#else
    (void)fake_stack, (void)stack, (void)bytes;
#endif
}

inline void after_switch(void* fake_stack, const void** left, size_t* left_bytes) {
#if EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, left, left_bytes);
#else
    (void)fake_stack, (void)left, (void)left_bytes;
#endif
}

[[noreturn]] inline void run_fibers();

inline void make_stacks(Block& b) {
    size_t bytes = MAX_BLOCK_THREADS * STACK_BYTES;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) {
        std::perror("emulator: no memory for stacks");
        std::abort();
    }
    b.stacks = static_cast<char*>(memory);
    for (unsigned i = MAX_BLOCK_THREADS; i-- > 0;) {
        char* stack = b.stacks + i * STACK_BYTES;
        mprotect(stack, PAGE_BYTES, PROT_NONE); // an overrun stops instead of spoiling a neighbor
        b.free_stacks.push_back(stack);
    }
}

// Gives the fiber a stack on which `run_fibers` starts when it is switched to.
inline void prepare(Fiber& fiber) {
    fiber.stack = block->free_stacks.back();
    block->free_stacks.pop_back();
    // Stacks that all start in the same place of a page would share a few lines of the cache.
    size_t shift = (size_t(fiber.stack - block->stacks) / STACK_BYTES) % 61 * 64;
    auto top = reinterpret_cast<uintptr_t>(fiber.stack + STACK_BYTES - shift) & ~uintptr_t(63);
    void** slot = reinterpret_cast<void**>(top);
    *--slot = nullptr; // the stack is 8 beyond a multiple of 16 where a function begins
    *--slot = reinterpret_cast<void*>(&run_fibers);
    for (int i = 0; i < 6; i++) *--slot = nullptr;
    fiber.stack_pointer = slot;
    fiber.fake_stack = nullptr;
#if EMULATOR_ASAN
    __asan_unpoison_memory_region(fiber.stack + PAGE_BYTES, STACK_BYTES - PAGE_BYTES);
#endif
}

// Leaves the stack of the current fiber until somebody makes it ready and it is picked again.
inline __attribute__((noinline)) void wait() {
    Fiber& me = self();
    Fiber& next = pick();
    if (!next.stack) prepare(next);
    block->current = &next;
    before_switch(&me.fake_stack, next.stack, STACK_BYTES);
    emulator_switch(&me.stack_pointer, next.stack_pointer);
    after_switch(me.fake_stack, nullptr, nullptr);
}

inline void release_barrier() {
    Block& b = *block;
    for (unsigned i = 0; i < b.n_threads; i++)
        if (b.fibers[i].state == AT_BARRIER) set_ready(b.fibers[i]);
    b.n_arrived = 0;
}

inline void end_thread(Fiber& fiber) {
    Block& b = *block;
    set_waiting(fiber, DONE);
    b.n_live--;
    if (b.n_live && b.n_arrived == b.n_live) release_barrier();
}

// What a stack runs: the current thread, then as many as have no stack yet, then it is left for
// good.
[[noreturn]] inline void run_fibers() {
    Block& b = *block;
    const void* left = nullptr;
    size_t left_bytes = 0;
    after_switch(nullptr, &left, &left_bytes);
    if (!b.main_stack) {
        b.main_stack = left;
        b.main_stack_bytes = left_bytes;
    }
    char* stack = b.current->stack;
    for (;;) {
        b.launch->kernel->entry(b.launch->parameters);
        end_thread(*b.current);
        if (!b.n_live) break;
        Fiber& next = pick();
        b.current->stack = nullptr;
        b.current = &next;
        if (next.stack) {
            b.free_stacks.push_back(stack);
            before_switch(nullptr, next.stack, STACK_BYTES);
            void* dropped;
            emulator_switch(&dropped, next.stack_pointer);
        }
        next.stack = stack;
    }
    b.current->stack = nullptr;
    b.free_stacks.push_back(stack);
    before_switch(nullptr, b.main_stack, b.main_stack_bytes);
    void* dropped;
    emulator_switch(&dropped, b.main_stack_pointer);
    std::abort();
}

// Waits for all threads of the block that have not ended; all must be in the same line.
inline void block_barrier(int line) {
    Block& b = *block;
    Fiber& me = self();
    me.barrier_line = line;
    set_waiting(me, AT_BARRIER);
    if (++b.n_arrived < b.n_live) return wait();
    for (unsigned i = 0; i < b.n_threads; i++)
        if (b.fibers[i].state == AT_BARRIER && b.fibers[i].barrier_line != line)
            die("threads meet in different barriers");
    release_barrier();
}

// ---- a block, a grid ----

// Where the `__shared__` variables of all kernels lie: each is thread-local and without a value at
// the start, so that they are the zeroed part of this module's thread-local memory.
struct Statics {
    size_t before_block; // bytes from their begin to `block`, the same in every thread
    size_t bytes;
};

inline Statics find_statics() {
    Statics found{0, 0};
    auto visit = [](dl_phdr_info* info, size_t, void* result) {
        auto* block_address = reinterpret_cast<char*>(&block);
        auto* base = static_cast<char*>(info->dlpi_tls_data);
        for (int i = 0; base && i < info->dlpi_phnum; i++) {
            const auto& header = info->dlpi_phdr[i];
            if (header.p_type != PT_TLS || block_address < base ||
                block_address >= base + header.p_memsz)
                continue;
            char* begin = base + header.p_filesz;
            *static_cast<Statics*>(result) = {size_t(block_address - begin),
                                              size_t(header.p_memsz - header.p_filesz)};
            return 1;
        }
        return 0;
    };
    dl_iterate_phdr(visit, &found);
    return found;
}

inline char* statics_begin(size_t* bytes) {
    static const Statics statics = find_statics();
    *bytes = statics.bytes;
    return reinterpret_cast<char*>(&block) - statics.before_block;
}

// Fills the `__shared__` variables with NaN, as nothing clears them on a device either.
inline void poison_statics() {
    Block* kept = block;
    size_t bytes;
    char* begin = statics_begin(&bytes);
    std::memset(begin, 0xFF, bytes);
    block = kept;
}

inline bool is_shared(const void* address, size_t bytes) {
    auto* p = static_cast<const char*>(address);
    if (p >= block->shared && p + bytes <= block->shared + block->launch->shared_bytes) return true;
    size_t static_bytes;
    char* begin = statics_begin(&static_bytes);
    return p >= begin && p + bytes <= begin + static_bytes;
}

inline void prepare_shared(Block& b) {
    size_t bytes = b.launch->shared_bytes;
    size_t padded = (bytes + 127) / 128 * 128 + CANARY_BYTES;
    // With AddressSanitizer each block has an allocation of its own, exact to the byte.
    if (EMULATOR_ASAN || b.shared_capacity < padded) {
        std::free(b.shared);
        if (EMULATOR_ASAN) padded = bytes;
        void* memory = nullptr;
        if (posix_memalign(&memory, 128, padded ? padded : 1) != 0) std::abort();
        b.shared = static_cast<char*>(memory);
        b.shared_capacity = padded;
    }
    std::memset(b.shared, 0xFF, EMULATOR_ASAN ? bytes : bytes + CANARY_BYTES);
}

inline void check_canary(Block& b) {
    if (EMULATOR_ASAN) return;
    for (size_t i = 0; i < CANARY_BYTES; i++)
        if (b.shared[b.launch->shared_bytes + i] != char(0xFF))
            die("a write behind the end of dynamic shared memory");
}

inline void prepare_fibers(Block& b) {
    const dim3& shape = b.launch->block;
    unsigned n = shape.x * shape.y * shape.z;
    bool same_shape = b.shape.x == shape.x && b.shape.y == shape.y && b.shape.z == shape.z;
    if (b.fibers.size() < n) b.fibers.resize(n);
    if (!same_shape)
        for (unsigned i = 0; i < n; i++) {
            b.fibers[i].linear = i;
            b.fibers[i].thread = {i % shape.x, i / shape.x % shape.y, i / (shape.x * shape.y)};
        }
    for (unsigned i = 0; i < n; i++) {
        Fiber& fiber = b.fibers[i];
        fiber.state = READY;
        fiber.stack = nullptr;
        if (!fiber.copies.empty()) fiber.copies.clear();
        if (!fiber.groups.empty()) fiber.groups.clear();
    }
    b.shape = shape;
    b.n_threads = b.n_live = b.n_ready = n;
    b.n_arrived = 0;
    b.warps.resize((n + 31) / 32);
    for (unsigned w = 0; w < b.warps.size(); w++) {
        unsigned lanes = n - w * 32;
        b.warps[w].ready = lanes >= 32 ? ~0u : (1u << lanes) - 1;
        b.warps[w].waiting = 0;
    }
}

inline void prepare_order(Block& b) {
    const Launch& launch = *b.launch;
    uint64_t linear = b.index.x + 65537ull * b.index.y + 4294967311ull * b.index.z;
    b.random = launch.seed * 0x9E3779B97F4A7C15ull + linear * 2 + 77;
    if (!b.random) b.random = 77;
    b.order.resize(b.n_threads);
    bool reverse = launch.schedule == REVERSE;
    for (unsigned i = 0; i < b.n_threads; i++) b.order[i] = reverse ? b.n_threads - 1 - i : i;
    // A random order is drawn where a pass over all threads begins, thus at the first pick too.
    b.cursor = launch.schedule == RANDOM ? b.n_threads : 0;
    b.greedy_warp = launch.schedule == GREEDY_REVERSE ? unsigned(b.warps.size()) - 1 : 0;
    if (launch.schedule == GREEDY_RANDOM) b.greedy_warp = next_random() % b.warps.size();
}

inline void run_block(const Launch& launch, uint3 index) {
    Block& b = *block;
    b.launch = &launch;
    b.index = index;
    b.current = nullptr;
    prepare_fibers(b);
    prepare_order(b);
    prepare_shared(b);
    Fiber& first = pick();
    prepare(first);
    b.current = &first;
    b.main_stack = nullptr;
    before_switch(&b.main_fake_stack, first.stack, STACK_BYTES);
    emulator_switch(&b.main_stack_pointer, first.stack_pointer);
    after_switch(b.main_fake_stack, nullptr, nullptr);
    b.current = nullptr;
    check_canary(b);
}

} // namespace emulator
