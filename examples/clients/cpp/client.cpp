#include "client.hpp"

int main(int argc, char** argv) {
    return client::run(argc, argv, [](auto& address, auto&) { return client::connected(address); });
}
