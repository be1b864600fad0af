// livetrain-serve CONFIG: answers requests with published models. See docs/guide/server.md.

#include <httplib.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "deltas.h"

int main(int count, char** arguments) {
    if (count != 2) {
        std::cerr << "usage: livetrain-serve serve.json\n";
        return 2;
    }
    try {
        std::ifstream file(arguments[1]);
        const auto config = nlohmann::json::parse(file);
        Served served(config.at("models").begin()->at("published").get<std::string>());
        httplib::Server server;
        server.Get("/health", [&](const httplib::Request&, httplib::Response& answer) {
            answer.set_content(nlohmann::json({{"fence", served.state().fence}}).dump(), "application/json");
        });
        server.listen(config.value("host", "127.0.0.1").c_str(), config.value("port", 8080));
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 2;
    }
    return 0;
}
