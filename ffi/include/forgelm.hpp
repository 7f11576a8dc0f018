// forgelm.hpp: forgelm.h for C++17, in this header alone.
//
// Objects free themselves and are moved, not copied. Failures are forgelm::Error. An exception that a
// callback throws ends the call as a cancel does and is thrown on from it. Thread rules are those of
// forgelm.h.
#ifndef FORGELM_HPP
#define FORGELM_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "forgelm.h"

namespace forgelm {

// A call that failed: status(), what(), and details() as JSON.
class Error : public std::runtime_error {
public:
    Error(forgelm_status status, const std::string &message, std::string details)
        : std::runtime_error(message), status_(status), details_(std::move(details)) {}
    [[nodiscard]] forgelm_status status() const noexcept { return status_; }
    [[nodiscard]] const std::string &details() const noexcept { return details_; }

private:
    forgelm_status status_;
    std::string details_;
};

// An end of a call, and its JSON.
struct Result {
    forgelm_status status = FORGELM_OK;
    std::string json;
    [[nodiscard]] bool ok() const noexcept { return status == FORGELM_OK; }
};

// Something that happened; the texts live until the callback returns.
struct Event {
    std::string_view name;
    std::string_view json;
    std::uint64_t step = 0;
    std::uint64_t n_steps = 0;
    double loss = 0.0;
};

// False stops the call.
using EventFn = std::function<bool(const Event &)>;
// False ends the answer to this prompt.
using PieceFn = std::function<bool(std::size_t prompt, std::string_view piece)>;

namespace detail {

struct Free {
    void operator()(char *text) const noexcept { forgelm_string_free(text); }
    void operator()(forgelm_error *error) const noexcept { forgelm_error_free(error); }
    void operator()(forgelm_engine *engine) const noexcept { forgelm_engine_free(engine); }
    void operator()(forgelm_cancel *cancel) const noexcept { forgelm_cancel_free(cancel); }
    void operator()(forgelm_model *model) const noexcept { forgelm_model_free(model); }
};
template <class T> using Owned = std::unique_ptr<T, Free>;

// The out-pointers of one call.
struct Outs {
    char *text = nullptr;
    forgelm_error *error = nullptr;
    Outs() = default;
    Outs(const Outs &) = delete;
    Outs &operator=(const Outs &) = delete;
    ~Outs() {
        forgelm_string_free(text);
        forgelm_error_free(error);
    }
    // Throws where there is an error; else the text.
    Result end(forgelm_status status) const {
        if (error != nullptr) {
            throw Error(status, forgelm_error_message(error), forgelm_error_details(error));
        }
        return {status, text == nullptr ? std::string() : std::string(text)};
    }
};

// A callback, and what it threw.
template <class F> struct Ear {
    const F &listen;
    std::exception_ptr thrown = nullptr;
    void rethrow() const {
        if (thrown) std::rethrow_exception(thrown);
    }
};

inline std::int32_t on_event(void *user, const forgelm_event *event) noexcept {
    auto *ear = static_cast<Ear<EventFn> *>(user);
    try {
        return ear->listen({event->name, event->json, event->step, event->n_steps, event->loss}) ? 0 : 1;
    } catch (...) {
        if (!ear->thrown) ear->thrown = std::current_exception();
        return 1;
    }
}

inline std::int32_t on_piece(void *user, std::size_t prompt, const char *piece) noexcept {
    auto *ear = static_cast<Ear<PieceFn> *>(user);
    try {
        return ear->listen(prompt, piece) ? 0 : 1;
    } catch (...) {
        if (!ear->thrown) ear->thrown = std::current_exception();
        return 1;
    }
}

inline const char *or_null(const std::string &text) noexcept {
    return text.empty() ? nullptr : text.c_str();
}

}  // namespace detail

// The version of the library that is linked.
inline std::string version() { return forgelm_version(); }

// A flag that stops the calls that were given it. trigger() is safe in a signal handler.
class Cancel {
public:
    Cancel() {
        detail::Outs outs;
        forgelm_cancel *made = nullptr;
        (void)outs.end(forgelm_cancel_new(&made, &outs.error));
        cancel_.reset(made);
    }
    void trigger() const noexcept { forgelm_cancel_trigger(cancel_.get()); }
    [[nodiscard]] const forgelm_cancel *get() const noexcept { return cancel_.get(); }

private:
    detail::Owned<forgelm_cancel> cancel_;
};

// A config's text and how messages call it.
struct Config {
    std::string text;
    std::string file_name = "config.yaml";
};

class Model;

// What calls may know of the world.
class Engine {
public:
    // Options as JSON; none: all as the program has it.
    explicit Engine(const std::string &options = {}) {
        detail::Outs outs;
        forgelm_engine *made = nullptr;
        (void)outs.end(forgelm_engine_new(detail::or_null(options), &made, &outs.error));
        engine_.reset(made);
    }

    [[nodiscard]] std::string info() const {
        detail::Outs outs;
        return outs.end(forgelm_engine_info(engine_.get(), &outs.text, &outs.error)).json;
    }

    [[nodiscard]] std::string plan(const Config &config) const {
        detail::Outs outs;
        return outs
            .end(forgelm_plan(engine_.get(), config.text.data(), config.text.size(),
                              config.file_name.c_str(), &outs.text, &outs.error))
            .json;
    }

    // Ends without an error have status FORGELM_OK, FORGELM_GATE_REJECTED, FORGELM_AWAITING_APPROVAL
    // or FORGELM_INTERRUPTED.
    Result train(const Config &config, const EventFn &listen = {}, const Cancel *cancel = nullptr,
                 const std::string &options = {}) const {
        return listening(listen, [&](forgelm_event_fn on_event, void *user, detail::Outs &outs) {
            return forgelm_train(engine_.get(), config.text.data(), config.text.size(),
                                 config.file_name.c_str(), detail::or_null(options), on_event, user,
                                 flag(cancel), &outs.text, &outs.error);
        });
    }

    Result merge(const Config &config, const EventFn &listen = {},
                 const Cancel *cancel = nullptr) const {
        return listening(listen, [&](forgelm_event_fn on_event, void *user, detail::Outs &outs) {
            return forgelm_merge(engine_.get(), config.text.data(), config.text.size(),
                                 config.file_name.c_str(), on_event, user, flag(cancel), &outs.text,
                                 &outs.error);
        });
    }

    Result quantize(const std::string &request, const EventFn &listen = {},
                    const Cancel *cancel = nullptr) const {
        return listening(listen, [&](forgelm_event_fn on_event, void *user, detail::Outs &outs) {
            return forgelm_quantize(engine_.get(), request.c_str(), on_event, user, flag(cancel),
                                    &outs.text, &outs.error);
        });
    }

    // What forgelm_key_generate tells of the new key.
    std::string generate_key(const std::string &path, const std::string &options = {}) const {
        detail::Outs outs;
        return outs
            .end(forgelm_key_generate(engine_.get(), path.c_str(), detail::or_null(options),
                                      &outs.text, &outs.error))
            .json;
    }

    // What forgelm_sign tells of the signature.
    std::string sign(const std::string &path, const std::string &options = {}) const {
        detail::Outs outs;
        return outs
            .end(forgelm_sign(engine_.get(), path.c_str(), detail::or_null(options), &outs.text,
                              &outs.error))
            .json;
    }

    [[nodiscard]] std::string plugins() const {
        detail::Outs outs;
        return outs.end(forgelm_plugin_list(engine_.get(), &outs.text, &outs.error)).json;
    }

    // ok() where it is accepted; any other verdict is in the status and the report.
    [[nodiscard]] Result verify(const std::string &what, const std::string &path,
                                const std::string &options = {}) const {
        detail::Outs outs;
        return outs.end(forgelm_verify(engine_.get(), what.c_str(), path.c_str(),
                                       detail::or_null(options), &outs.text, &outs.error));
    }

    [[nodiscard]] const forgelm_engine *get() const noexcept { return engine_.get(); }

private:
    static const forgelm_cancel *flag(const Cancel *cancel) noexcept {
        return cancel == nullptr ? nullptr : cancel->get();
    }

    template <class Call> static Result listening(const EventFn &listen, const Call &call) {
        detail::Outs outs;
        detail::Ear<EventFn> ear{listen};
        const forgelm_status status =
            listen ? call(detail::on_event, &ear, outs) : call(nullptr, nullptr, outs);
        ear.rethrow();
        return outs.end(status);
    }

    detail::Owned<forgelm_engine> engine_;
};

// A model in memory. Any number of threads may ask it.
class Model {
public:
    Model(const Engine &engine, const std::string &name, const std::string &options = {}) {
        detail::Outs outs;
        forgelm_model *made = nullptr;
        (void)outs.end(forgelm_model_load(engine.get(), name.c_str(), detail::or_null(options),
                                          nullptr, nullptr, &made, &outs.error));
        model_.reset(made);
    }

    [[nodiscard]] std::string info() const {
        detail::Outs outs;
        return outs.end(forgelm_model_info(model_.get(), &outs.text, &outs.error)).json;
    }

    // Nothing takes the adapter off.
    void set_adapter(const std::optional<std::string> &dir) const {
        detail::Outs outs;
        (void)outs.end(forgelm_model_set_adapter(model_.get(), dir ? dir->c_str() : nullptr,
                                                 &outs.error));
    }

    // The answers as JSON.
    std::string generate(const std::string &request, const PieceFn &listen = {},
                         const Cancel *cancel = nullptr) const {
        detail::Outs outs;
        detail::Ear<PieceFn> ear{listen};
        const forgelm_status status = forgelm_model_generate(
            model_.get(), request.c_str(), listen ? detail::on_piece : nullptr, &ear,
            cancel == nullptr ? nullptr : cancel->get(), &outs.text, &outs.error);
        ear.rethrow();
        return outs.end(status).json;
    }

    [[nodiscard]] std::string score(const std::string &request,
                                    const Cancel *cancel = nullptr) const {
        detail::Outs outs;
        return outs
            .end(forgelm_model_score(model_.get(), request.c_str(),
                                     cancel == nullptr ? nullptr : cancel->get(), &outs.text,
                                     &outs.error))
            .json;
    }

    // Float32 [n_tokens - 1]; the caller calls its deleter.
    [[nodiscard]] struct DLManagedTensor *logprobs(const std::string &prompt,
                                                   const Cancel *cancel = nullptr) const {
        detail::Outs outs;
        struct DLManagedTensor *tensor = nullptr;
        (void)outs.end(forgelm_model_logprobs(model_.get(), prompt.c_str(),
                                              cancel == nullptr ? nullptr : cancel->get(), &tensor,
                                              &outs.error));
        return tensor;
    }

    [[nodiscard]] std::string encode(const std::string &prompt) const {
        detail::Outs outs;
        return outs.end(forgelm_model_encode(model_.get(), prompt.c_str(), &outs.text, &outs.error))
            .json;
    }

    [[nodiscard]] std::string decode(const std::uint32_t *tokens, std::size_t n_tokens) const {
        detail::Outs outs;
        return outs
            .end(forgelm_model_decode(model_.get(), tokens, n_tokens, &outs.text, &outs.error))
            .json;
    }

private:
    detail::Owned<forgelm_model> model_;
};

}  // namespace forgelm

#endif  // FORGELM_HPP
