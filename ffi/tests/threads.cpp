// Eight runs on eight threads, thirty-two threads that cancel them at random; continued, all end with
// the same bits. In the working directory are model/ and data.jsonl.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <thread>
#include <vector>

#include "forgelm.hpp"

#define CHECK(condition)                                                       \
    do {                                                                       \
        if (!(condition)) {                                                    \
            std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                      \
        }                                                                      \
    } while (0)

constexpr int n_runs = 8, n_cancellers = 32;

forgelm::Config config(int run) {
    const std::string out = "many/" + std::to_string(run);
    return {"model: {name_or_path: model, max_length: 128, load_in_4bit: false}\n"
            "lora: {r: 4, alpha: 8, target_modules: [q_proj, v_proj]}\n"
            "training: {output_dir: " + out + ", max_steps: 12, per_device_train_batch_size: 4,\n"
            "  gradient_accumulation_steps: 1, learning_rate: 5e-3, save_steps: 4, threads: 1,\n"
            "  compute_dtype: float32, report_to: none}\n"
            "data: {dataset_name_or_path: data.jsonl}\n",
            "run" + std::to_string(run) + ".yaml"};
}

std::string bytes(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void runs_are_cancelled_at_random_and_end_with_the_same_bits(const forgelm::Engine &engine) {
    std::vector<forgelm::Cancel> flags(n_runs);
    std::atomic<int> n_interrupted{0}, n_done{0};
    std::vector<std::thread> threads;
    for (int run = 0; run < n_runs; ++run) {
        threads.emplace_back([&, run] {
            try {
                const auto result = engine.train(config(run), {}, &flags[run]);
                CHECK(result.ok() || result.status == FORGELM_INTERRUPTED);
                ++(result.ok() ? n_done : n_interrupted);
            } catch (const forgelm::Error &error) {
                // Cancelled before there was anything to continue.
                CHECK(error.status() == FORGELM_INTERRUPTED);
                ++n_interrupted;
            }
        });
    }
    for (int i = 0; i < n_cancellers; ++i) {
        threads.emplace_back([&, i] {
            std::mt19937 random(static_cast<unsigned>(i));
            std::this_thread::sleep_for(std::chrono::milliseconds(random() % 400));
            // Some runs are left alone.
            flags[random() % (n_runs - 2)].trigger();
        });
    }
    for (auto &thread : threads) thread.join();
    CHECK(n_done + n_interrupted == n_runs && n_done >= 2);
    std::printf("%d done, %d interrupted\n", n_done.load(), n_interrupted.load());

    std::string first;
    for (int run = 0; run < n_runs; ++run) {
        const auto result = engine.train(config(run), {}, nullptr, R"({"resume": true})");
        CHECK(result.ok());
        const std::string adapter =
            bytes("many/" + std::to_string(run) + "/final_model/adapter_model.safetensors");
        CHECK(!adapter.empty());
        if (run == 0) first = adapter;
        CHECK(adapter == first);
    }
}

void an_exception_of_a_callback_comes_back(const forgelm::Engine &engine) {
    bool is_thrown = false;
    auto bad = config(100);
    try {
        engine.train(bad, [](const forgelm::Event &event) -> bool {
            if (event.name == "step") throw std::runtime_error("from the callback");
            return true;
        });
    } catch (const std::runtime_error &error) {
        is_thrown = std::string(error.what()) == "from the callback";
    }
    CHECK(is_thrown);
}

void answers_of_threads_are_those_of_one(const forgelm::Engine &engine) {
    const forgelm::Model model(engine, "model", R"({"threads": 1})");
    const std::string request = R"({"prompts": ["Item 3 is", "What"], "max_new_tokens": 8,
                                    "temperature": 0.8, "seed": 3})";
    const std::string alone = model.generate(request);
    const std::uint32_t tokens[] = {5, 6};
    CHECK(!model.decode(tokens, 2).empty());
    CHECK(model.encode(R"({"tokens": [5, 6]})") == R"({"tokens":[5,6]})");
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&] { CHECK(model.generate(request) == alone); });
    }
    for (auto &thread : threads) thread.join();
    std::size_t n_pieces = 0;
    const std::string cut = model.generate(request, [&](std::size_t prompt, std::string_view) {
        ++n_pieces;
        return prompt != 0;
    });
    CHECK(n_pieces > 0 && cut.find("\"caller\"") != std::string::npos);
    try {
        (void)model.generate("{}");
        CHECK(false);
    } catch (const forgelm::Error &error) {
        CHECK(error.status() == FORGELM_CONFIG_ERROR);
        CHECK(std::string(error.what()).find("`request.prompts`") != std::string::npos);
    }
}

int main() {
    const forgelm::Engine engine(R"({"operator": "host@test", "offline": true,
                                     "config_dir": "home", "cache_dir": "cache"})");
    CHECK(engine.info().find("\"version\"") != std::string::npos);
    CHECK(engine.plugins().find("\"sft\"") != std::string::npos);
    CHECK(engine.generate_key("cpp.key").find("keyid") != std::string::npos);
    CHECK(engine.sign("data.jsonl", R"({"signing_key": "cpp.key"})").find("dsse") != std::string::npos);
    runs_are_cancelled_at_random_and_end_with_the_same_bits(engine);
    an_exception_of_a_callback_comes_back(engine);
    answers_of_threads_are_those_of_one(engine);
    std::puts("threads: ok");
}
