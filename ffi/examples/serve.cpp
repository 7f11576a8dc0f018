// A tiny chat server loop: each line of standard input is a question, answers come in pieces. Lines
// that begin with /adapter change the adapter while the model stays loaded.
//
//   c++ -std=c++17 serve.cpp $(pkg-config --cflags --libs forgelm) -o serve
//   printf 'Hello?\n/adapter out/final_model\nHello?\n' | ./serve MODEL
#include <cstdio>
#include <iostream>
#include <optional>
#include <string>

#include "forgelm.hpp"

// A text as a JSON string.
static std::string quoted(const std::string &text) {
    std::string out = "\"";
    for (const char c : text) {
        char code[8];
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (static_cast<unsigned char>(c) < 0x20) {
            std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(c));
            out += code;
        } else {
            out += c;
        }
    }
    return out + "\"";
}

int main(int argc, char **argv) {
    if (argc < 2) {
        std::cerr << "usage: " << argv[0] << " MODEL\n";
        return FORGELM_CONFIG_ERROR;
    }
    try {
        const forgelm::Engine engine;
        const forgelm::Model model(engine, argv[1]);
        std::string line;
        while (std::getline(std::cin, line)) {
            try {
                if (line.rfind("/adapter", 0) == 0) {
                    const auto space = line.find(' ');
                    const bool is_named = space != std::string::npos;
                    model.set_adapter(is_named ? std::optional(line.substr(space + 1)) : std::nullopt);
                    std::cout << "[" << line.substr(1) << "]\n";
                    continue;
                }
                const std::string request =
                    R"({"prompts": [{"messages": [{"role": "user", "content": )" + quoted(line) +
                    R"(}]}], "max_new_tokens": 64})";
                model.generate(request, [](std::size_t, std::string_view piece) {
                    std::cout << piece << std::flush;
                    return true;
                });
                std::cout << '\n';
            } catch (const forgelm::Error &error) {
                std::cout << "[" << error.what() << "]\n";
            }
        }
    } catch (const forgelm::Error &error) {
        std::cerr << error.what() << '\n';
        return error.status();
    }
    return 0;
}
