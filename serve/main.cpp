// livetrain-serve CONFIG: answers requests with published models. See docs/guide/server.md.

#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>

#include "server.h"

int main(int count, char** arguments) {
    if (count != 2) {
        std::cerr << "usage: livetrain-serve serve.json\n";
        return 2;
    }
    // Libraries read these as the process begins: a thread per request, and huge pages for large tensors.
    if (!std::getenv("OMP_NUM_THREADS")) {
        setenv("OMP_NUM_THREADS", "1", 1), setenv("THP_MEM_ALLOC_ENABLE", "1", 0);
        execv("/proc/self/exe", arguments);
    }
    sigset_t ends;
    sigemptyset(&ends), sigaddset(&ends, SIGTERM), sigaddset(&ends, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ends, nullptr);  // before there are other threads, which then have it too
    std::atomic<serve::Server*> loaded{nullptr};
    std::thread stopper([&] {
        int signal = 0;
        sigwait(&ends, &signal);
        if (auto* server = loaded.load()) server->stop();
        else std::_Exit(0);  // it answers nobody yet
    });
    try {
        const auto config = serve::read_config(arguments[1]);
        serve::Server server(config);
        loaded = &server;
        std::cerr << "serving on " << config.host << ":" << config.port << std::endl;
        if (server.listen()) {
            stopper.join();
            return 0;
        }
        std::cerr << arguments[1] << ": " << config.host << ":" << config.port
                  << " cannot be had; choose another host or port\n";
    } catch (const std::exception& error) {
        std::cerr << said(error) << "\n";
    }
    std::_Exit(2);  // the thread that waits for a signal waits for ever
}
