// A stand-in for cuDNN's backend: causal attention over packed sequences, forward, as one graph, on
// the memory and the streams of the stand-in driver. Of all that cuDNN does, this is what it knows.
//
// It refuses what is not that graph: other operations, sizes and strides that do not fit each
// other, descriptors that are not finished or are gone, addresses that are not on the device or not
// aligned. A test can let it compute something else (`emulator_cudnn_set`).
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

extern "C" int emulator_enqueue(void* stream, void (*work)(void*), void (*drop)(void*), void*);
extern "C" int emulator_is_on_device(const void* address, uint64_t bytes);
extern "C" void emulator_count(const char* name, uint64_t amount);

namespace {

// Of cudnnStatus_t.
enum Status : int {
    SUCCESS = 0,
    BAD_PARAM = 2000,
    MISALIGNED = 2003,
    NOT_FINALIZED = 2004,
    NOT_SUPPORTED = 3000,
    GRAPH_PATTERN = 3001,
    SHAPE = 3002,
    OUT_OF_HOST_MEMORY = 4003,
    EXECUTION_FAILED = 5000,
};

// Of cudnnBackendDescriptorType_t.
enum Kind : int {
    ENGINE_CONFIG = 3,
    HEURISTIC = 4,
    PLAN = 5,
    GRAPH = 15,
    VARIANT_PACK = 16,
    TENSOR = 17,
    ATTENTION = 41,
    BAND_MASK = 44,
};

// Of cudnnBackendAttributeName_t.
enum Name : int {
    HEURISTIC_GRAPH = 201,
    HEURISTIC_RESULTS = 202,
    PLAN_ENGINE = 401,
    PLAN_WORKSPACE = 402,
    GRAPH_OPS = 801,
    TENSOR_ALIGNMENT = 900,
    TENSOR_TYPE = 901,
    TENSOR_DIMS = 902,
    TENSOR_STRIDES = 903,
    TENSOR_UID = 906,
    TENSOR_IS_VIRTUAL = 907,
    TENSOR_BY_VALUE = 908,
    TENSOR_OFFSETS = 913,
    PACK_UIDS = 1000,
    PACK_ADDRESSES = 1001,
    PACK_WORKSPACE = 1003,
    ATTENTION_Q = 2800,
    ATTENTION_K,
    ATTENTION_V,
    ATTENTION_OUT,
    ATTENTION_STATS,
    ATTENTION_SCALE,
    ATTENTION_QUERY_LENS = 2809,
    ATTENTION_KEY_LENS,
    ATTENTION_GRAPH,
    ATTENTION_GRAPH_INPUT,
    ATTENTION_GRAPH_OUTPUT,
    MASK_X = 3000,
    MASK_RIGHT = 3004,
    MASK_VALUE = 3005,
    MASK_Y = 3006,
    MASK_COMPARISON = 3007,
};

// Of cudnnBackendAttributeType_t: bytes of one value, 0 of what is not known here.
size_t bytes_of(int type) {
    switch (type) {
        case 0: case 3: case 6: case 15: return 8;  // handle, int64, address, descriptor
        case 1: case 8: case 14: return 4;          // enumerations
        case 2: case 24: return 1;                  // boolean, letter
    }
    return 0;
}
constexpr int DESCRIPTOR_TYPE = 15;
constexpr int FLOAT = 0, INT32 = 4, BFLOAT16 = 9;  // of cudnnDataType_t
constexpr int GREATER_EQUAL = 303;                 // of cudnnPointwiseMode_t
constexpr int64_t WORKSPACE_BYTES = 17408;

// What a test may let go wrong.
enum Fault : int {
    NONE,
    WRONG_NUMBER,
    LOGARITHM_OF_TWO,
    WRITES_BEHIND,
    READS_BEHIND,
    OTHER_BITS,
    NO_PLAN,
    DOES_NOT_RUN,
    NO_MEMORY,
    WRONG_FOR_TWO,
    NO_PLAN_FOR_TWO,
};

struct Settings {
    size_t version = 92800, cuda_version = 12090;
    Fault fault = NONE;
};

// `FORGELM_EMULATOR_CUDNN_FAULT` is for tests that start another program.
Settings settings_at_start() {
    Settings settings;
    if (const char* fault = std::getenv("FORGELM_EMULATOR_CUDNN_FAULT"))
        settings.fault = Fault(std::atoi(fault));
    return settings;
}

Settings settings = settings_at_start();

struct Handle {
    void* stream = nullptr;
};

struct Descriptor {
    int kind;
    bool is_finished = false;
    std::map<int, std::vector<char>> values;

    template <class T> std::vector<T> all(int name) const {
        auto found = values.find(name);
        if (found == values.end()) return {};
        std::vector<T> result(found->second.size() / sizeof(T));
        std::memcpy(result.data(), found->second.data(), result.size() * sizeof(T));
        return result;
    }
    template <class T> T one(int name, T otherwise) const {
        auto values = all<T>(name);
        return values.size() == 1 ? values[0] : otherwise;
    }
};

std::mutex mutex;
std::set<Descriptor*> alive;

bool is_alive(Descriptor* descriptor) { return alive.count(descriptor) != 0; }

// A finished descriptor of a kind that another one names; null if it is something else, or gone.
Descriptor* linked(const Descriptor& from, int name, int kind) {
    auto* to = from.one<Descriptor*>(name, nullptr);
    return is_alive(to) && to->kind == kind && to->is_finished ? to : nullptr;
}

using Dims = std::vector<int64_t>;

// Whether a descriptor is of a tensor like this.
bool is_tensor(const Descriptor* tensor, int type, const Dims& dims, const Dims& strides,
               bool by_value = false, bool is_virtual = false) {
    return tensor && tensor->one<int>(TENSOR_TYPE, -1) == type &&
           tensor->all<int64_t>(TENSOR_DIMS) == dims &&
           tensor->all<int64_t>(TENSOR_STRIDES) == strides &&
           bool(tensor->one<char>(TENSOR_BY_VALUE, 0)) == by_value &&
           bool(tensor->one<char>(TENSOR_IS_VIRTUAL, 0)) == is_virtual;
}

int64_t uid_of(const Descriptor* tensor) { return tensor->one<int64_t>(TENSOR_UID, -1); }

// The graph, and what it reads and writes by their numbers.
struct Attention {
    int64_t n, heads, kv_heads, rows, width;
    int64_t q, k, v, out, stats, query_lens, key_lens;
    int64_t q_offsets, k_offsets, v_offsets, out_offsets, stats_offsets;
    int64_t scale, right, masked;
};

const Dims ONE = {1, 1, 1, 1};

// The graph on scores: y = row + right >= column ? x : masked.
int read_mask(const Descriptor& operation, Attention& to) {
    Descriptor* graph = linked(operation, ATTENTION_GRAPH, GRAPH);
    Descriptor* mask = graph ? linked(*graph, GRAPH_OPS, BAND_MASK) : nullptr;
    if (!mask || mask->one<int>(MASK_COMPARISON, 0) != GREATER_EQUAL) return GRAPH_PATTERN;
    Descriptor* x = linked(*mask, MASK_X, TENSOR);
    Descriptor* y = linked(*mask, MASK_Y, TENSOR);
    Descriptor* right = linked(*mask, MASK_RIGHT, TENSOR);
    Descriptor* masked = linked(*mask, MASK_VALUE, TENSOR);
    Dims dims = {to.n, to.heads, to.rows, to.rows};
    Dims strides = {to.heads * to.rows * to.rows, to.rows * to.rows, to.rows, 1};
    if (!is_tensor(x, FLOAT, dims, strides, false, true)) return SHAPE;
    if (!is_tensor(y, FLOAT, dims, strides, false, true)) return SHAPE;
    if (!is_tensor(right, INT32, ONE, ONE, true)) return SHAPE;
    if (!is_tensor(masked, FLOAT, ONE, ONE, true)) return SHAPE;
    if (operation.one<int64_t>(ATTENTION_GRAPH_INPUT, -1) != uid_of(x)) return BAD_PARAM;
    if (operation.one<int64_t>(ATTENTION_GRAPH_OUTPUT, -1) != uid_of(y)) return BAD_PARAM;
    to.right = uid_of(right);
    to.masked = uid_of(masked);
    return SUCCESS;
}

// Sequences of [T, heads, width] that lie end to end.
int read_packed(const Descriptor* tensor, const Attention& a, int type, int64_t heads,
                int64_t width, int64_t& uid, int64_t& offsets_uid) {
    Dims dims = {a.n, heads, a.rows, width};
    Dims strides = {heads * a.rows * width, width, heads * width, 1};
    if (!is_tensor(tensor, type, dims, strides)) return SHAPE;
    Descriptor* offsets = linked(*tensor, TENSOR_OFFSETS, TENSOR);
    if (!is_tensor(offsets, INT32, {a.n + 1, 1, 1, 1}, ONE)) return SHAPE;
    uid = uid_of(tensor);
    offsets_uid = uid_of(offsets);
    return SUCCESS;
}

int read_attention(const Descriptor& plan, Attention& to) {
    Descriptor* engine = linked(plan, PLAN_ENGINE, ENGINE_CONFIG);
    Descriptor* graph = engine ? linked(*engine, HEURISTIC_GRAPH, GRAPH) : nullptr;
    Descriptor* operation = graph ? linked(*graph, GRAPH_OPS, ATTENTION) : nullptr;
    if (!operation) return GRAPH_PATTERN;
    auto tensor = [&](int name) { return linked(*operation, name, TENSOR); };
    Descriptor *q = tensor(ATTENTION_Q), *k = tensor(ATTENTION_K), *v = tensor(ATTENTION_V);
    if (!q || !k || !v) return GRAPH_PATTERN;
    Dims q_dims = q->all<int64_t>(TENSOR_DIMS), k_dims = k->all<int64_t>(TENSOR_DIMS);
    if (q_dims.size() != 4 || k_dims.size() != 4) return SHAPE;
    to.n = q_dims[0], to.heads = q_dims[1], to.rows = q_dims[2], to.width = q_dims[3];
    to.kv_heads = k_dims[1];
    if (to.kv_heads < 1 || to.heads % to.kv_heads || to.width % 8 || to.width > 256) return SHAPE;
    auto packed = [&](int name, int type, int64_t heads, int64_t width, int64_t& uid,
                      int64_t& offsets) {
        return read_packed(tensor(name), to, type, heads, width, uid, offsets);
    };
    int failures[] = {
        packed(ATTENTION_Q, BFLOAT16, to.heads, to.width, to.q, to.q_offsets),
        packed(ATTENTION_K, BFLOAT16, to.kv_heads, to.width, to.k, to.k_offsets),
        packed(ATTENTION_V, BFLOAT16, to.kv_heads, to.width, to.v, to.v_offsets),
        packed(ATTENTION_OUT, BFLOAT16, to.heads, to.width, to.out, to.out_offsets),
        packed(ATTENTION_STATS, FLOAT, to.heads, 1, to.stats, to.stats_offsets),
    };
    for (int failure : failures)
        if (failure) return failure;
    Descriptor *query_lens = tensor(ATTENTION_QUERY_LENS), *key_lens = tensor(ATTENTION_KEY_LENS);
    if (!is_tensor(query_lens, INT32, {to.n, 1, 1, 1}, ONE)) return SHAPE;
    if (!is_tensor(key_lens, INT32, {to.n, 1, 1, 1}, ONE)) return SHAPE;
    if (!is_tensor(tensor(ATTENTION_SCALE), FLOAT, ONE, ONE, true)) return SHAPE;
    to.query_lens = uid_of(query_lens);
    to.key_lens = uid_of(key_lens);
    to.scale = uid_of(tensor(ATTENTION_SCALE));
    return read_mask(*operation, to);
}

// One execution.
struct Work {
    Attention a;
    Fault fault;
    float scale, masked;
    int32_t right;
    const uint16_t *q, *k, *v;
    uint16_t* out;
    float* stats;
    const int32_t *query_lens, *key_lens, *q_offsets, *k_offsets, *v_offsets, *out_offsets;
    const int32_t* stats_offsets;
};

float number(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

uint16_t rounded(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (std::isnan(value)) return 0x7fff;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void one_row(const Work& w, int64_t sequence, int64_t row, int64_t head) {
    const Attention& a = w.a;
    int64_t kv_head = head / (a.heads / a.kv_heads), n_keys = w.key_lens[sequence];
    const uint16_t* q = w.q + w.q_offsets[sequence] + (row * a.heads + head) * a.width;
    const uint16_t* k = w.k + w.k_offsets[sequence] + kv_head * a.width;
    const uint16_t* v = w.v + w.v_offsets[sequence] + kv_head * a.width;
    int64_t step = a.kv_heads * a.width;
    std::vector<double> scores(static_cast<size_t>(n_keys));
    double largest = -INFINITY, sum = 0;
    for (int64_t key = 0; key < n_keys; key++) {
        double dot = 0;
        for (int64_t i = 0; i < a.width; i++)
            dot += double(number(q[i])) * number(k[key * step + i]);
        bool is_seen = row + w.right >= key;
        scores[size_t(key)] = is_seen ? dot * w.scale : w.masked;
        largest = std::fmax(largest, scores[size_t(key)]);
    }
    for (double& score : scores) sum += score = std::exp(score - largest);
    uint16_t* out = w.out + w.out_offsets[sequence] + (row * a.heads + head) * a.width;
    for (int64_t i = 0; i < a.width; i++) {
        double total = 0;
        for (int64_t key = 0; key < n_keys; key++)
            if (scores[size_t(key)] > 0) total += scores[size_t(key)] * number(v[key * step + i]);
        if (w.fault == READS_BEHIND) total += 0.0 * number(v[n_keys * step + i]);
        out[i] = rounded(float(total / sum));
    }
    double log_sum = largest + std::log(sum);
    if (w.fault == LOGARITHM_OF_TWO) log_sum /= std::log(2.0);
    w.stats[w.stats_offsets[sequence] + row * a.heads + head] = float(log_sum);
}

void run(void* state) {
    const Work& w = *static_cast<Work*>(state);
    const Attention& a = w.a;
    auto check = [](const void* address, int64_t bytes) {
        if (bytes == 0 || emulator_is_on_device(address, uint64_t(bytes))) return;
        std::fprintf(stderr, "emulator: cuDNN's attention goes past the end of memory\n");
        std::abort();
    };
    check(w.q, 2 * w.q_offsets[a.n]);
    check(w.k, 2 * w.k_offsets[a.n]);
    check(w.v, 2 * w.v_offsets[a.n]);
    check(w.out, 2 * w.out_offsets[a.n]);
    check(w.stats, 4 * w.stats_offsets[a.n]);
    for (int64_t sequence = 0; sequence < a.n; sequence++) {
        if (w.query_lens[sequence] > a.rows || w.key_lens[sequence] > a.rows) std::abort();
        for (int64_t row = 0; row < w.query_lens[sequence]; row++)
            for (int64_t head = 0; head < a.heads; head++) one_row(w, sequence, row, head);
    }
    static bool is_odd = false;
    is_odd = !is_odd;
    bool is_wrong = w.fault == WRONG_NUMBER || (w.fault == WRONG_FOR_TWO && a.n == 2);
    if (is_wrong) w.out[5] = rounded(number(w.out[5]) + 0.0625f);
    if (w.fault == WRITES_BEHIND) w.out[w.out_offsets[a.n]] = 0;
    if (w.fault == OTHER_BITS && is_odd) w.out[5] ^= 1;
}

void drop(void* state) { delete static_cast<Work*>(state); }

// The addresses of a variant pack.
struct Pack {
    std::map<int64_t, void*> addresses;
    int failure = SUCCESS;

    template <class T> T* on_device(int64_t uid) {
        auto* address = static_cast<T*>(addresses[uid]);
        if (reinterpret_cast<uintptr_t>(address) % 16) failure = MISALIGNED;
        // The real library starts a kernel that faults; here nothing is touched.
        if (!emulator_is_on_device(address, sizeof(T))) failure = EXECUTION_FAILED;
        return address;
    }
    template <class T> T on_host(int64_t uid) {
        void* address = addresses[uid];
        if (!address || emulator_is_on_device(address, 1)) {
            failure = BAD_PARAM;
            return T();
        }
        T value;
        std::memcpy(&value, address, sizeof(T));
        return value;
    }
};

}  // namespace

// What a test wants of it: its version, the CUDA that it is for, and what goes wrong.
API void emulator_cudnn_set(uint64_t version, uint64_t cuda_version, int fault) {
    settings.version = version;
    settings.cuda_version = cuda_version;
    settings.fault = Fault(fault);
}

API size_t cudnnGetVersion() { return settings.version; }

API size_t cudnnGetCudartVersion() { return settings.cuda_version; }

API void cudnnGetLastErrorString(char* text, size_t bytes) {
    std::snprintf(text, bytes, "the stand-in for cuDNN does not take it\nmore lines");
}

API int cudnnCreate(void** handle) {
    *handle = new Handle;
    return SUCCESS;
}

API int cudnnDestroy(void* handle) {
    delete static_cast<Handle*>(handle);
    return SUCCESS;
}

API int cudnnSetStream(void* handle, void* stream) {
    static_cast<Handle*>(handle)->stream = stream;
    return SUCCESS;
}

API int cudnnBackendCreateDescriptor(int kind, void** descriptor) {
    std::lock_guard<std::mutex> guard(mutex);
    auto* made = new Descriptor;
    made->kind = kind;
    alive.insert(made);
    *descriptor = made;
    return SUCCESS;
}

API int cudnnBackendDestroyDescriptor(void* descriptor) {
    std::lock_guard<std::mutex> guard(mutex);
    auto* gone = static_cast<Descriptor*>(descriptor);
    if (!alive.erase(gone)) return BAD_PARAM;
    delete gone;
    return SUCCESS;
}

API int cudnnBackendSetAttribute(void* descriptor, int name, int type, int64_t n,
                                 const void* values) {
    std::lock_guard<std::mutex> guard(mutex);
    auto* to = static_cast<Descriptor*>(descriptor);
    size_t bytes = bytes_of(type) * size_t(n);
    if (!is_alive(to) || to->is_finished || !bytes) return BAD_PARAM;
    auto* from = static_cast<const char*>(values);
    to->values[name].assign(from, from + bytes);
    if (type != DESCRIPTOR_TYPE) return SUCCESS;
    for (auto* other : to->all<Descriptor*>(name))
        if (!is_alive(other) || !other->is_finished) return NOT_FINALIZED;
    return SUCCESS;
}

API int cudnnBackendFinalize(void* descriptor) {
    std::lock_guard<std::mutex> guard(mutex);
    auto* it = static_cast<Descriptor*>(descriptor);
    if (!is_alive(it) || it->is_finished) return BAD_PARAM;
    if (it->kind == TENSOR && it->one<int64_t>(TENSOR_ALIGNMENT, 0) != 16) return BAD_PARAM;
    if (it->kind == PLAN) {
        Attention attention;
        if (int failure = read_attention(*it, attention)) return failure;
        if (settings.fault == NO_PLAN) return NOT_SUPPORTED;
        if (settings.fault == NO_PLAN_FOR_TWO && attention.n == 2) return NOT_SUPPORTED;
        if (settings.fault == NO_MEMORY) return OUT_OF_HOST_MEMORY;
        emulator_count("plans of cuDNN", 1);
    }
    it->is_finished = true;
    return SUCCESS;
}

API int cudnnBackendGetAttribute(void* descriptor, int name, int, int64_t n_max, int64_t* n,
                                 void* to) {
    std::lock_guard<std::mutex> guard(mutex);
    auto* from = static_cast<Descriptor*>(descriptor);
    if (!is_alive(from) || !from->is_finished || n_max < 1) return NOT_FINALIZED;
    *n = 1;
    if (from->kind == PLAN && name == PLAN_WORKSPACE) {
        std::memcpy(to, &WORKSPACE_BYTES, 8);
        return SUCCESS;
    }
    if (from->kind != HEURISTIC || name != HEURISTIC_RESULTS) return BAD_PARAM;
    auto* engine = *static_cast<Descriptor**>(to);
    if (!is_alive(engine) || engine->kind != ENGINE_CONFIG) return BAD_PARAM;
    engine->values[HEURISTIC_GRAPH] = from->values[HEURISTIC_GRAPH];
    engine->is_finished = true;
    return SUCCESS;
}

API int cudnnBackendExecute(void* handle, void* plan, void* pack) {
    std::lock_guard<std::mutex> guard(mutex);
    auto* what = static_cast<Descriptor*>(plan);
    auto* with = static_cast<Descriptor*>(pack);
    if (!is_alive(what) || !is_alive(with) || !with->is_finished) return BAD_PARAM;
    if (settings.fault == DOES_NOT_RUN) return EXECUTION_FAILED;
    auto work = std::make_unique<Work>();
    Attention& a = work->a;
    // Read again: whatever the plan is made of must still be there.
    if (int failure = read_attention(*what, a)) return failure;
    auto uids = with->all<int64_t>(PACK_UIDS);
    auto addresses = with->all<void*>(PACK_ADDRESSES);
    if (uids.size() != addresses.size()) return BAD_PARAM;
    Pack from;
    for (size_t i = 0; i < uids.size(); i++) from.addresses[uids[i]] = addresses[i];
    work->fault = settings.fault;
    work->q = from.on_device<uint16_t>(a.q);
    work->k = from.on_device<uint16_t>(a.k);
    work->v = from.on_device<uint16_t>(a.v);
    work->out = from.on_device<uint16_t>(a.out);
    work->stats = from.on_device<float>(a.stats);
    work->query_lens = from.on_device<int32_t>(a.query_lens);
    work->key_lens = from.on_device<int32_t>(a.key_lens);
    work->q_offsets = from.on_device<int32_t>(a.q_offsets);
    work->k_offsets = from.on_device<int32_t>(a.k_offsets);
    work->v_offsets = from.on_device<int32_t>(a.v_offsets);
    work->out_offsets = from.on_device<int32_t>(a.out_offsets);
    work->stats_offsets = from.on_device<int32_t>(a.stats_offsets);
    work->scale = from.on_host<float>(a.scale);
    work->masked = from.on_host<float>(a.masked);
    work->right = from.on_host<int32_t>(a.right);
    if (from.failure) return from.failure;
    auto* workspace = with->one<void*>(PACK_WORKSPACE, nullptr);
    if (!emulator_is_on_device(workspace, WORKSPACE_BYTES)) return EXECUTION_FAILED;
    emulator_count("attentions of cuDNN", 1);
    void* stream = static_cast<Handle*>(handle)->stream;
    return emulator_enqueue(stream, run, drop, work.release()) ? EXECUTION_FAILED : SUCCESS;
}
