#include "routing.hpp"

int main(int argc, char** argv) { return client::run(argc, argv, routing::owners_channel); }
