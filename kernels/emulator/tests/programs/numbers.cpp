// The numbers and the collective functions of device.cuh against what they are defined to be. Each
// problem is a line of output; with one the program ends with 1.
#include <cmath>
#include <cstdio>
#include <vector>

#include "device.cuh"

using namespace forgelm;

namespace {

int n_problems = 0;

void expect(bool holds, const char* what, double at) {
    if (holds) return;
    if (n_problems++ < 20) std::printf("%s does not hold at %.9g\n", what, at);
}

// A format is given by its non-negative finite codes 0, 1, .. in order: `encode` must give the code
// of the nearest, of two equally near the even one. It is tried at each number, at each middle of
// two neighbors, and at the floats beside that.
template <class Encode, class Decode>
void check_rounding(const char* what, unsigned n_codes, unsigned sign_bit, Encode encode,
                    Decode decode) {
    for (unsigned code = 0; code < n_codes; code++) {
        float value = decode(code);
        expect(encode(value) == code && encode(-value) == (code | sign_bit), what, value);
        if (code + 1 == n_codes) break;
        double middle = (double(value) + double(decode(code + 1))) / 2;
        auto at = float(middle);
        if (double(at) != middle) continue; // no float lies there
        unsigned even = code % 2 == 0 ? code : code + 1;
        expect(encode(at) == even && encode(-at) == (even | sign_bit), what, at);
        expect(encode(std::nextafterf(at, 0.0f)) == code, what, at);
        expect(encode(std::nextafterf(at, INFINITY)) == code + 1, what, at);
    }
}

void check_numbers() {
    check_rounding(
        "float_to_f16", 0x7c01, 0x8000, [](float f) { return unsigned(float_to_f16(f)); },
        // the code of infinity stands for 2^16, where rounding to it begins to be nearest
        [](unsigned c) { return c == 0x7c00 ? 65536.0f : f16_to_float(uint16_t(c)); });
    check_rounding(
        "to_bf16", 0x7f80, 0x8000, [](float f) { return unsigned(to_bf16(f).bits); },
        [](unsigned c) { return to_float(bf16{uint16_t(c)}); });
    expect(std::isnan(f16_to_float(float_to_f16(NAN))), "NaN of f16", 0);
    expect(std::isnan(to_float(to_bf16(NAN))), "NaN of bf16", 0);
    expect(float_to_f16(INFINITY) == 0x7c00 && f16_to_float(0x3555) == 0.333251953125f, "f16", 0);
}

// The known answers of Random123, as in kernels/api/src/philox.rs.
void check_random() {
    Philox zero = philox4x32(0, 0, 0, 0, 0, 0);
    expect(zero.words[0] == 0x6627e8d5 && zero.words[3] == 0x9b00dbd8, "philox4x32", 0);
    Philox pi = philox4x32(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0);
    expect(pi.words[0] == 0xd16cfe09 && pi.words[1] == 0x94fdcceb, "philox4x32", 1);
    expect(pi.words[2] == 0x5001e420 && pi.words[3] == 0x24126ea1, "philox4x32", 2);
}

constexpr int N = 96; // three warps

} // namespace

// Results of a block, one array of N each.
KERNEL(96)
void collectives(float* sum, float* largest, double* wide_sum, unsigned* votes, int* shuffled) {
    int i = int(threadIdx.x);
    auto value = float(i % 7) + 0.25f;
    sum[i] = block_sum(value);
    largest[i] = block_max(i == 77 ? 1000.0f : -float(i));
    wide_sum[i] = block_sum(double(i) * 1e-9 + 1.0);
    votes[i] = __ballot_sync(ALL_LANES, i % 3 == 0);
    int below = __shfl_down_sync(ALL_LANES, i, 3), above = __shfl_up_sync(ALL_LANES, i, 3);
    int other = __shfl_xor_sync(ALL_LANES, i, 5), of_8 = __shfl_sync(ALL_LANES, i, 2, 8);
    shuffled[i] = below + above * 1000 + other * 1000000 + of_8 % 10 * 100000000;
}
REGISTER(collectives)

// Sixteen bytes at a time: float to bf16 and back.
KERNEL(32) void vectors(bf16* narrow, float* wide, const float* x) {
    int i = int(threadIdx.x) * 8;
    float eight[8], again[8];
    load_vector(x + i, eight);
    store_vector(narrow + i, eight);
    load_vector(narrow + i, again);
    store_vector(wide + i, again);
}
REGISTER(vectors)

namespace {

void check_collectives() {
    std::vector<float> sum(N), largest(N);
    std::vector<double> wide(N);
    std::vector<unsigned> votes(N);
    std::vector<int> shuffled(N);
    emulator::launch("collectives", 1, N, 0, sum.data(), largest.data(), wide.data(), votes.data(),
                     shuffled.data());
    double expected = 0, expected_wide = 0;
    for (int i = 0; i < N; i++) {
        expected += i % 7 + 0.25;
        expected_wide += i * 1e-9 + 1.0;
    }
    for (int i = 0; i < N; i++) {
        expect(sum[i] == float(expected), "block_sum", i);
        expect(largest[i] == 1000.0f, "block_max", i);
        expect(std::abs(wide[i] - expected_wide) < 1e-12, "block_sum of double", i);
        unsigned vote = 0;
        for (int lane = 0; lane < 32; lane++)
            vote |= unsigned((i / 32 * 32 + lane) % 3 == 0) << lane;
        expect(votes[i] == vote, "__ballot_sync", i);
        int lane = i % 32;
        int below = lane + 3 < 32 ? i + 3 : i, above = lane >= 3 ? i - 3 : i;
        int other = i ^ 5, of_8 = i / 8 * 8 + 2;
        int all = below + above * 1000 + other * 1000000 + of_8 % 10 * 100000000;
        expect(shuffled[i] == all, "a shuffle", i);
    }
}

void check_vectors() {
    alignas(16) float x[256], wide[256];
    alignas(16) bf16 narrow[256];
    for (int i = 0; i < 256; i++) x[i] = float(i) * 1.001f;
    emulator::launch("vectors", 1, 32, 0, narrow, wide, (const float*)x);
    for (int i = 0; i < 256; i++) {
        expect(narrow[i].bits == to_bf16(x[i]).bits, "store_vector", i);
        expect(wide[i] == to_float(to_bf16(x[i])), "load_vector", i);
    }
}

} // namespace

int main() {
    check_numbers();
    check_random();
    emulator::for_each_combination([](int, int) {
        check_collectives();
        check_vectors();
    });
    return n_problems ? 1 : 0;
}
