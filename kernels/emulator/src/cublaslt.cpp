// A stand-in for libcublasLt: D = alpha op(A) op(B) + beta C with an optional bias, on the memory
// and the streams of the stand-in driver. Each number is a float sum in the order of k.
//
// It refuses what the real library refuses: descriptors that do not fit each other, types that it
// has no kernel for, addresses that are less aligned than was promised when the algorithm was
// chosen, a workspace that is too small.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define API EXPORT int // a Status

extern "C" int emulator_enqueue(void* stream, void (*work)(void*), void (*drop)(void*), void*);
extern "C" int emulator_is_on_device(const void* address, uint64_t bytes);
extern "C" void emulator_count(const char* name, uint64_t amount);

namespace {

enum Status : int {
    SUCCESS = 0,
    NOT_INITIALIZED = 1,
    INVALID_VALUE = 7,
    EXECUTION_FAILED = 13,
    NOT_SUPPORTED = 15,
};

enum Type : int { R_32F = 0, R_16BF = 14 };                        // of cudaDataType
// Of cublasComputeType_t.
enum Compute : int { COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_32F_FAST_TF32 = 77 };
enum Operation : int { NO_TRANSPOSE = 0, TRANSPOSE = 1 };
enum Order : int { COLUMN_MAJOR = 0, ROW_MAJOR = 1 };
enum Epilogue : int { EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4 };
constexpr int POINTER_MODE_HOST = 0;
constexpr int REDUCTION_NONE = 0;

// Descriptors say what they are, so that a wrong or a dead one is seen.
enum Kind : uint32_t { HANDLE = 0x1a001, LAYOUT, DESCRIPTION, PREFERENCE };

struct Object {
    Kind kind;
    explicit Object(Kind kind) : kind(kind) {}
    virtual ~Object() { kind = Kind(0); }
};

struct Handle : Object {
    Handle() : Object(HANDLE) {}
};

struct Layout : Object {
    int type, order = COLUMN_MAJOR;
    uint64_t rows, columns;
    int64_t leading, stride = 0;
    int n_batches = 1;
    Layout(int type, uint64_t rows, uint64_t columns, int64_t leading)
        : Object(LAYOUT), type(type), rows(rows), columns(columns), leading(leading) {}

    size_t number_bytes() const { return type == R_32F ? 4 : 2; }
    // Numbers from the first to behind the last of one matrix.
    uint64_t extent() const {
        uint64_t lines = order == COLUMN_MAJOR ? columns : rows;
        uint64_t length = order == COLUMN_MAJOR ? rows : columns;
        return lines ? (lines - 1) * uint64_t(leading) + length : 0;
    }
    uint64_t bytes() const {
        return (uint64_t(n_batches - 1) * uint64_t(stride) + extent()) * number_bytes();
    }
    uint64_t index(uint64_t row, uint64_t column) const {
        return order == COLUMN_MAJOR ? column * uint64_t(leading) + row
                                     : row * uint64_t(leading) + column;
    }
    bool is_sound() const {
        uint64_t length = order == COLUMN_MAJOR ? rows : columns;
        return rows && columns && leading >= int64_t(length) && n_batches >= 1 &&
               (type == R_32F || type == R_16BF) && (order == COLUMN_MAJOR || order == ROW_MAJOR);
    }
};

struct Description : Object {
    int compute, scale_type, pointer_mode = POINTER_MODE_HOST;
    int transpose_a = NO_TRANSPOSE, transpose_b = NO_TRANSPOSE, transpose_c = NO_TRANSPOSE;
    int epilogue = EPILOGUE_DEFAULT;
    const void* bias = nullptr;
    int64_t bias_stride = 0;
    int bias_type = -1; // that of D
    Description(int compute, int scale_type)
        : Object(DESCRIPTION), compute(compute), scale_type(scale_type) {}
};

struct Preference : Object {
    uint64_t workspace_bytes = 0;
    uint32_t reductions = 7;
    uint32_t alignments[4] = {256, 256, 256, 256}; // of A, B, C, D
    Preference() : Object(PREFERENCE) {}
};

// What cublasLtMatmulAlgo_t holds of this library; its 64 bytes are the caller's to copy.
struct Algorithm {
    uint64_t mark;
    uint64_t workspace_bytes;
    uint32_t alignments[4];
    uint64_t sizes[3]; // m, n, k it was chosen for
    uint64_t types;
};
constexpr uint64_t ALGORITHM_MARK = 0x666f7267656c6d01;
static_assert(sizeof(Algorithm) == 64, "the size of cublasLtMatmulAlgo_t");

struct HeuristicResult {
    Algorithm algorithm;
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

struct Alive {
    std::mutex mutex;
    std::set<void*> objects;
};
Alive& alive() {
    static Alive& alive = *new Alive;
    return alive;
}

template <class T> int hand_out(void** object, T* made) {
    std::lock_guard<std::mutex> guard(alive().mutex);
    alive().objects.insert(made);
    *object = made;
    return SUCCESS;
}

template <class T> T* find(void* object, Kind kind) {
    std::lock_guard<std::mutex> guard(alive().mutex);
    if (!alive().objects.count(object)) return nullptr;
    return static_cast<Object*>(object)->kind == kind ? static_cast<T*>(object) : nullptr;
}

int destroy(void* object) {
    std::lock_guard<std::mutex> guard(alive().mutex);
    if (!object || !alive().objects.erase(object)) return INVALID_VALUE;
    delete static_cast<Object*>(object);
    return SUCCESS;
}

// Takes the value of an attribute, which must be given in the size of its type.
template <class T> int take(T& field, const void* value, size_t bytes) {
    if (!value || bytes != sizeof(T)) return INVALID_VALUE;
    std::memcpy(&field, value, bytes);
    return SUCCESS;
}

// ---- one product ----

struct Product {
    Description description{0, 0};
    Layout a{0, 0, 0, 0}, b{0, 0, 0, 0}, c{0, 0, 0, 0}, d{0, 0, 0, 0};
    uint64_t m, n, k;
    float alpha, beta;
    const char *a_begin, *b_begin, *c_begin;
    char* d_begin;
};

int check(const Description& description, const Layout& a, const Layout& b, const Layout& c,
          const Layout& d, uint64_t (&sizes)[3]) {
    for (const Layout* layout : {&a, &b, &c, &d})
        if (!layout->is_sound()) return INVALID_VALUE;
    bool ta = description.transpose_a == TRANSPOSE, tb = description.transpose_b == TRANSPOSE;
    uint64_t m = ta ? a.columns : a.rows, k = ta ? a.rows : a.columns;
    uint64_t k_of_b = tb ? b.columns : b.rows, n = tb ? b.rows : b.columns;
    if (k != k_of_b || d.rows != m || d.columns != n || c.rows != m || c.columns != n)
        return INVALID_VALUE;
    if (b.n_batches != a.n_batches || c.n_batches != a.n_batches || d.n_batches != a.n_batches)
        return INVALID_VALUE;
    if (c.type != d.type || c.order != d.order) return NOT_SUPPORTED;
    if (description.compute != COMPUTE_32F && description.compute != COMPUTE_32F_PEDANTIC &&
        description.compute != COMPUTE_32F_FAST_TF32)
        return NOT_SUPPORTED;
    if (description.transpose_c != NO_TRANSPOSE) return NOT_SUPPORTED;
    if (description.scale_type != R_32F) return NOT_SUPPORTED;
    bool floats = a.type == R_32F && b.type == R_32F && d.type == R_32F;
    bool brain_floats = a.type == R_16BF && b.type == R_16BF;
    if (!floats && !brain_floats) return NOT_SUPPORTED;
    if (description.epilogue == EPILOGUE_BIAS && d.order == ROW_MAJOR) return NOT_SUPPORTED;
    if (description.epilogue != EPILOGUE_BIAS && description.epilogue != EPILOGUE_DEFAULT)
        return NOT_SUPPORTED;
    sizes[0] = m;
    sizes[1] = n;
    sizes[2] = k;
    return SUCCESS;
}

float read_number(const char* begin, int type, uint64_t index) {
    if (type == R_32F) {
        float value;
        std::memcpy(&value, begin + index * 4, 4);
        return value;
    }
    uint16_t bits;
    std::memcpy(&bits, begin + index * 2, 2);
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

void write_number(char* begin, int type, uint64_t index, float value) {
    if (type == R_32F) {
        std::memcpy(begin + index * 4, &value, 4);
        return;
    }
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    auto nearest = uint16_t(nan ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    std::memcpy(begin + index * 2, &nearest, 2);
}

// The nearest float with ten bits behind the point, as tensor cores take f32 in TF32: who asks for
// that by mistake sees it in the numbers.
float to_tf32(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits = (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu;
    std::memcpy(&value, &bits, 4);
    return value;
}

// The matrix as floats, `lines` of `length` numbers each: numbers of a line follow each other.
std::vector<float> unpack(const Layout& layout, const char* begin, bool lines_are_columns) {
    uint64_t lines = lines_are_columns ? layout.columns : layout.rows;
    uint64_t length = lines_are_columns ? layout.rows : layout.columns;
    std::vector<float> numbers(lines * length);
    for (uint64_t i = 0; i < lines; i++)
        for (uint64_t j = 0; j < length; j++) {
            uint64_t at = lines_are_columns ? layout.index(j, i) : layout.index(i, j);
            numbers[i * length + j] = read_number(begin, layout.type, at);
        }
    return numbers;
}

void multiply(const Product& p, uint64_t batch) {
    auto of_batch = [batch](const char* begin, const Layout& layout) {
        return begin + batch * uint64_t(layout.stride) * layout.number_bytes();
    };
    // A by k, so that a column of D grows by whole columns of op(A); B by column of op(B).
    std::vector<float> a = unpack(p.a, of_batch(p.a_begin, p.a), p.description.transpose_a == 0);
    std::vector<float> b = unpack(p.b, of_batch(p.b_begin, p.b), p.description.transpose_b == 0);
    const char* c = p.c_begin ? of_batch(p.c_begin, p.c) : nullptr;
    char* d = p.d_begin + batch * uint64_t(p.d.stride) * p.d.number_bytes();
    if (p.description.compute == COMPUTE_32F_FAST_TF32)
        for (std::vector<float>* numbers : {&a, &b})
            for (float& number : *numbers) number = to_tf32(number);
    std::vector<float> sums(p.m);
    int bias_type = p.description.bias_type >= 0 ? p.description.bias_type : p.d.type;
    auto* bias = static_cast<const char*>(p.description.bias);
    for (uint64_t column = 0; column < p.n; column++) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (uint64_t k = 0; k < p.k; k++) {
            float factor = b[column * p.k + k];
            const float* line = &a[k * p.m];
            for (uint64_t row = 0; row < p.m; row++) sums[row] += line[row] * factor;
        }
        for (uint64_t row = 0; row < p.m; row++) {
            float value = p.alpha * sums[row];
            if (p.beta != 0.0f) value += p.beta * read_number(c, p.c.type, p.c.index(row, column));
            if (p.description.epilogue == EPILOGUE_BIAS)
                value += read_number(bias, bias_type,
                                     batch * uint64_t(p.description.bias_stride) + row);
            write_number(d, p.d.type, p.d.index(row, column), value);
        }
    }
}

void run(void* state) {
    auto* product = static_cast<Product*>(state);
    for (int batch = 0; batch < product->a.n_batches; batch++) multiply(*product, uint64_t(batch));
}

void drop(void* state) { delete static_cast<Product*>(state); }

uint64_t types_of(const Layout& a, const Layout& d) {
    return uint64_t(a.type) << 32 | uint32_t(d.type);
}

bool is_aligned(const void* address, uint32_t bytes) {
    return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

// Whether the algorithm was chosen for this product, and what was promised then holds.
int check_algorithm(const Algorithm& algorithm, const Product& p, const void* workspace,
                    size_t workspace_bytes) {
    if (algorithm.mark != ALGORITHM_MARK) return INVALID_VALUE;
    if (algorithm.sizes[0] != p.m || algorithm.sizes[1] != p.n || algorithm.sizes[2] != p.k)
        return INVALID_VALUE;
    if (algorithm.types != types_of(p.a, p.d)) return INVALID_VALUE;
    const void* addresses[4] = {p.a_begin, p.b_begin, p.c_begin, p.d_begin};
    for (int i = 0; i < 4; i++)
        if (!is_aligned(addresses[i], algorithm.alignments[i])) return INVALID_VALUE;
    if (!algorithm.workspace_bytes) return SUCCESS;
    if (workspace_bytes < algorithm.workspace_bytes || !is_aligned(workspace, 256))
        return INVALID_VALUE;
    return emulator_is_on_device(workspace, workspace_bytes) ? SUCCESS : INVALID_VALUE;
}

} // namespace

API cublasLtCreate(void** handle) {
    if (!handle) return INVALID_VALUE;
    return hand_out(handle, new Handle);
}

API cublasLtDestroy(void* handle) { return destroy(handle); }

EXPORT size_t cublasLtGetVersion() { return 120903; }
EXPORT size_t cublasLtGetCudartVersion() { return 12090; }

EXPORT const char* cublasLtGetStatusName(int status) {
    switch (status) {
    case SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "unknown";
    }
}

EXPORT const char* cublasLtGetStatusString(int status) { return cublasLtGetStatusName(status); }

API cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns,
                               int64_t leading) {
    if (!layout) return INVALID_VALUE;
    return hand_out(layout, new Layout(type, rows, columns, leading));
}

API cublasLtMatrixLayoutDestroy(void* layout) { return destroy(layout); }

API cublasLtMatrixLayoutSetAttribute(void* object, int attribute, const void* value,
                                     size_t bytes) {
    auto* layout = find<Layout>(object, LAYOUT);
    if (!layout) return INVALID_VALUE;
    switch (attribute) {
    case 0: return take(layout->type, value, bytes);
    case 1: return take(layout->order, value, bytes);
    case 2: return take(layout->rows, value, bytes);
    case 3: return take(layout->columns, value, bytes);
    case 4: return take(layout->leading, value, bytes);
    case 5: return take(layout->n_batches, value, bytes);
    case 6: return take(layout->stride, value, bytes);
    default: return INVALID_VALUE;
    }
}

API cublasLtMatmulDescCreate(void** description, int compute, int scale_type) {
    if (!description) return INVALID_VALUE;
    return hand_out(description, new Description(compute, scale_type));
}

API cublasLtMatmulDescDestroy(void* description) { return destroy(description); }

API cublasLtMatmulDescSetAttribute(void* object, int attribute, const void* value, size_t bytes) {
    auto* description = find<Description>(object, DESCRIPTION);
    if (!description) return INVALID_VALUE;
    switch (attribute) {
    case 0: return take(description->compute, value, bytes);
    case 1: return take(description->scale_type, value, bytes);
    case 2: return take(description->pointer_mode, value, bytes);
    case 3: return take(description->transpose_a, value, bytes);
    case 4: return take(description->transpose_b, value, bytes);
    case 5: return take(description->transpose_c, value, bytes);
    case 7: return take(description->epilogue, value, bytes);
    case 8: return take(description->bias, value, bytes);
    case 10: return take(description->bias_stride, value, bytes);
    case 26: return take(description->bias_type, value, bytes);
    default: return NOT_SUPPORTED;
    }
}

API cublasLtMatmulPreferenceCreate(void** preference) {
    if (!preference) return INVALID_VALUE;
    return hand_out(preference, new Preference);
}

API cublasLtMatmulPreferenceDestroy(void* preference) { return destroy(preference); }

API cublasLtMatmulPreferenceSetAttribute(void* object, int attribute, const void* value,
                                         size_t bytes) {
    auto* preference = find<Preference>(object, PREFERENCE);
    if (!preference) return INVALID_VALUE;
    if (attribute == 1) return take(preference->workspace_bytes, value, bytes);
    if (attribute == 3) return take(preference->reductions, value, bytes);
    if (attribute < 5 || attribute > 8) return NOT_SUPPORTED;
    uint32_t alignment;
    if (int failure = take(alignment, value, bytes)) return failure;
    if (!alignment || alignment & (alignment - 1)) return INVALID_VALUE;
    preference->alignments[attribute - 5] = alignment;
    return SUCCESS;
}

// Offers a split of k, which needs a workspace, where one is allowed, and a plain algorithm.
API cublasLtMatmulAlgoGetHeuristic(void* handle, void* description, void* a, void* b, void* c,
                                   void* d, void* preference, int n_wanted,
                                   HeuristicResult* results, int* n_found) {
    if (!find<Handle>(handle, HANDLE)) return NOT_INITIALIZED;
    auto* what = find<Description>(description, DESCRIPTION);
    auto* wishes = find<Preference>(preference, PREFERENCE);
    Layout* layouts[4];
    void* const objects[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        if (!(layouts[i] = find<Layout>(objects[i], LAYOUT))) return INVALID_VALUE;
    if (!what || !wishes || n_wanted < 1 || !results || !n_found) return INVALID_VALUE;
    *n_found = 0;
    uint64_t sizes[3];
    if (int failure = check(*what, *layouts[0], *layouts[1], *layouts[2], *layouts[3], sizes))
        return failure;
    emulator_count("heuristics of cublasLt", 1);
    uint64_t split_bytes = sizes[0] * sizes[1] * sizeof(float) * 2;
    bool can_split = wishes->reductions != REDUCTION_NONE && sizes[2] >= 256 &&
                     split_bytes <= wishes->workspace_bytes;
    for (bool split : {true, false}) {
        if ((split && !can_split) || *n_found == n_wanted) continue;
        HeuristicResult& result = results[(*n_found)++];
        result = HeuristicResult{};
        Algorithm& algorithm = result.algorithm;
        algorithm.mark = ALGORITHM_MARK;
        algorithm.workspace_bytes = split ? split_bytes : 0;
        std::copy(wishes->alignments, wishes->alignments + 4, algorithm.alignments);
        std::copy(sizes, sizes + 3, algorithm.sizes);
        algorithm.types = types_of(*layouts[0], *layouts[3]);
        result.workspace_bytes = size_t(algorithm.workspace_bytes);
        result.state = SUCCESS;
        result.waves = 1.0f;
    }
    return SUCCESS;
}

API cublasLtMatmul(void* handle, void* description, const void* alpha, const void* a,
                   void* a_layout, const void* b, void* b_layout, const void* beta, const void* c,
                   void* c_layout, void* d, void* d_layout, const Algorithm* algorithm,
                   void* workspace, size_t workspace_bytes, void* stream) {
    if (!find<Handle>(handle, HANDLE)) return NOT_INITIALIZED;
    auto* what = find<Description>(description, DESCRIPTION);
    Layout* layouts[4];
    void* const objects[4] = {a_layout, b_layout, c_layout, d_layout};
    for (int i = 0; i < 4; i++)
        if (!(layouts[i] = find<Layout>(objects[i], LAYOUT))) return INVALID_VALUE;
    if (!what || !alpha || !beta || !a || !b || !d) return INVALID_VALUE;
    if (what->pointer_mode != POINTER_MODE_HOST) return NOT_SUPPORTED;

    auto product = std::make_unique<Product>();
    uint64_t sizes[3];
    if (int failure = check(*what, *layouts[0], *layouts[1], *layouts[2], *layouts[3], sizes))
        return failure;
    product->description = *what;
    product->a = *layouts[0];
    product->b = *layouts[1];
    product->c = *layouts[2];
    product->d = *layouts[3];
    product->m = sizes[0];
    product->n = sizes[1];
    product->k = sizes[2];
    std::memcpy(&product->alpha, alpha, 4);
    std::memcpy(&product->beta, beta, 4);
    product->a_begin = static_cast<const char*>(a);
    product->b_begin = static_cast<const char*>(b);
    product->c_begin = static_cast<const char*>(c);
    product->d_begin = static_cast<char*>(d);
    if (product->beta != 0.0f && !c) return INVALID_VALUE;
    if (c == d && product->c.leading != product->d.leading) return INVALID_VALUE;
    if (algorithm)
        if (int failure = check_algorithm(*algorithm, *product, workspace, workspace_bytes))
            return failure;
    bool on_device = emulator_is_on_device(a, product->a.bytes()) &&
                     emulator_is_on_device(b, product->b.bytes()) &&
                     emulator_is_on_device(d, product->d.bytes()) &&
                     (product->beta == 0.0f || emulator_is_on_device(c, product->c.bytes()));
    if (what->epilogue == EPILOGUE_BIAS)
        on_device = on_device && what->bias && emulator_is_on_device(what->bias, 1);
    // The real library starts a kernel that faults; here nothing is touched.
    if (!on_device) return EXECUTION_FAILED;
    emulator_count("products of cublasLt", 1);
    return emulator_enqueue(stream, run, drop, product.release()) ? EXECUTION_FAILED : SUCCESS;
}
