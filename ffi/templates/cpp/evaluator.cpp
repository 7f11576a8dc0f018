// my_plugin: an evaluator for ForgeLM, against forgelm_plugin.h alone.
//
// As it comes, it is the mean log-probability of a token over some texts. Yours goes into
// `evaluate`; the texts are in `texts`. It sees the model through services of the host alone:
// forgelm.score/1, and forgelm.generate/1 for answers.
// A body goes through `forgelm::guard`: what it throws becomes a status.
#include "forgelm_plugin.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace {

// What comes first, and what is scored.
struct Text {
    std::string_view prompt, completion;
};
constexpr std::array<Text, 3> texts = {{
    {"The sky is", " blue."},
    {"Two and two are", " four."},
    {"Fire is", " hot."},
}};

forgelm_str borrowed(std::string_view text) { return {text.data(), text.size()}; }

// Judges the model behind the services of this host; the report is one JSON object.
forgelm_status evaluate(const forgelm_evaluator *, const forgelm_host *host,
                        const forgelm_writer *report, forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, [&] {
        const auto *service =
            static_cast<const forgelm_score *>(host->get_extension(host, FORGELM_SCORE));
        if (service == nullptr || !FORGELM_HAS(service, score)) {
            return forgelm::fail(err, FORGELM_E_UNIMPLEMENTED, "my_plugin needs forgelm.score/1");
        }
        std::vector<forgelm_text_pair> pairs;
        for (const Text &text : texts) {
            pairs.push_back({borrowed(text.prompt), borrowed(text.completion)});
        }
        std::vector<double> sums(pairs.size());
        std::vector<std::uint64_t> n_tokens(pairs.size());
        const forgelm_status status = service->score(service, pairs.data(), pairs.size(),
                                                     sums.data(), n_tokens.data(), err);
        if (status != FORGELM_OK) {
            return status;
        }
        double sum = 0.0;
        std::uint64_t n = 0;
        for (std::size_t i = 0; i < pairs.size(); ++i) {
            sum += sums[i];
            n += n_tokens[i];
        }
        std::array<char, 128> text{};
        std::snprintf(text.data(), text.size(), "{\"mean_logp\": %.17g, \"n_tokens\": %llu}",
                      n > 0 ? sum / static_cast<double>(n) : 0.0,
                      static_cast<unsigned long long>(n));
        report->write(report->ctx, borrowed(text.data()));
        return forgelm_status{FORGELM_OK};
    });
}

void destroy(const forgelm_evaluator *) noexcept {}

// It has no options and so no state: one instance serves all. An evaluator with options makes
// an instance in `create`, keeps them behind `plugin_data`, and deletes it in `destroy`.
const forgelm_evaluator instance = {sizeof instance, 0, nullptr, destroy, evaluate, nullptr};

const forgelm_evaluator_descriptor described = {
    sizeof(forgelm_evaluator_descriptor),
    0,
    "my_plugin",
    "mean log-probability of a token of some texts",
    "Jelinek et al. 1977",
    nullptr,
};

forgelm_status create(const forgelm_evaluator_factory *, const forgelm_host *, std::uint32_t index,
                      forgelm_str options_json,
                      const forgelm_evaluator **out, forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, [&] {
        if (index != 0) {
            throw std::invalid_argument("no evaluator has this index");
        }
        if (std::string_view(options_json.ptr, options_json.len) != "{}") {
            throw std::invalid_argument("my_plugin has no options");
        }
        *out = &instance;
        return FORGELM_OK;
    });
}

std::uint32_t count(const forgelm_evaluator_factory *) noexcept { return 1; }

const forgelm_evaluator_descriptor *descriptor(const forgelm_evaluator_factory *,
                                            std::uint32_t index) noexcept {
    return index == 0 ? &described : nullptr;
}

const forgelm_evaluator_factory factory = {sizeof factory, 0, count, descriptor, create};

const void *get_factory(const char *id) noexcept {
    return std::string_view(id) == FORGELM_EVALUATOR_FACTORY ? &factory : nullptr;
}

} // namespace

FORGELM_PLUGIN_EXPORT const forgelm_entry forgelm_plugin_entry = {
    FORGELM_PLUGIN_MAGIC,
    FORGELM_PLUGIN_ABI_MAJOR,
    FORGELM_PLUGIN_ABI_MINOR,
    sizeof(forgelm_entry),
    0,
    FORGELM_PLUGIN_LAYOUT_HASH,
    "my_plugin", // the library
    "0.1.0",     // its version
    nullptr,
    nullptr,
    get_factory,
};
