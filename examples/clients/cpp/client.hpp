// A thrifty client: any node takes any request.
//
//     client [HOST:PORT] put KEY VALUE
//     client [HOST:PORT] get KEY
//     client [HOST:PORT] del KEY
//
// Exit codes: 0 ok, 1 no such key, 2 wrong usage, 3 nothing done, 5 outcome unknown.
#pragma once

#include <unistd.h>

#include <chrono>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <absl/status/status.h>
#include <grpcpp/grpcpp.h>

#include "thrifty/store/v1/store.grpc.pb.h"

namespace client {

namespace pb = thrifty::store::v1;
using Channel = std::shared_ptr<grpc::Channel>;
using Clock = std::chrono::system_clock;

const std::map<std::string, size_t> ARGUMENTS = {{"put", 2}, {"get", 1}, {"del", 1}};
constexpr std::chrono::seconds CONNECT_TIME{2};
constexpr std::chrono::seconds REQUEST_TIME{5};  // sent along: the server gives up in time to say how far it got

enum ExitCode { OK = 0, NOT_FOUND = 1, USAGE = 2, NOTHING_DONE = 3, OUTCOME_UNKNOWN = 5 };

struct Failure : std::runtime_error {
    ExitCode exit_code;
    Failure(ExitCode exit_code, const std::string& message) : runtime_error(message), exit_code(exit_code) {}
};

// A channel that is connected, so that a request which fails afterwards may have been sent.
inline Channel connected(const std::string& address) {
    auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
    if (!channel->WaitForConnected(Clock::now() + CONNECT_TIME))
        throw Failure(NOTHING_DONE, "nobody answers at " + address + ": nothing was done");
    return channel;
}

// What a status means for the caller.
inline Failure failure(const grpc::Status& status, bool writes) {
    // gRPC's codes are Abseil's, which have names.
    auto name = absl::StatusCodeToString(static_cast<absl::StatusCode>(status.error_code()));
    auto message = name + ": " + status.error_message();
    // UNAVAILABLE comes with RetryInfo if the server says so, and without if the connection broke.
    bool refused = status.error_details().find("google.rpc.RetryInfo") != std::string::npos;
    switch (status.error_code()) {
    case grpc::NOT_FOUND:
        return {NOT_FOUND, message};
    case grpc::INVALID_ARGUMENT:
    case grpc::OUT_OF_RANGE:
    case grpc::FAILED_PRECONDITION:
    case grpc::PERMISSION_DENIED:
    case grpc::UNIMPLEMENTED:  // a node of the location service, which stores nothing
        return {USAGE, message};
    case grpc::UNAVAILABLE:
        writes = writes && !refused;
        break;
    case grpc::RESOURCE_EXHAUSTED:
        writes = false;
        break;
    default:
        break;
    }
    if (!writes) return {NOTHING_DONE, message + " (try again later)"};
    // ABORTED, DEADLINE_EXCEEDED, a broken connection, and whatever else a write may end with.
    return {OUTCOME_UNKNOWN, message + " (it may have happened or not: read before you repeat it)"};
}

// One call, with a deadline of its own.
template <class Stub, class Request, class Response>
Response call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
              const Request& request, bool writes) {
    grpc::ClientContext context;
    context.set_deadline(Clock::now() + REQUEST_TIME);
    Response response;
    auto status = (stub.*method)(&context, request, &response);
    if (!status.ok()) throw failure(status, writes);
    return response;
}

inline void put(const Channel& channel, const std::string& key, const std::string& value) {
    pb::PutRequest request;
    request.set_key(key);
    request.set_value(value);
    call(*pb::Store::NewStub(channel), &pb::Store::Stub::Put, request, true);
}

inline std::string get(const Channel& channel, const std::string& key) {
    pb::GetRequest request;
    request.set_key(key);
    return call(*pb::Store::NewStub(channel), &pb::Store::Stub::Get, request, false).value();
}

inline void del(const Channel& channel, const std::string& key) {
    pb::DeleteRequest request;
    request.set_key(key);
    call(*pb::Store::NewStub(channel), &pb::Store::Stub::Delete, request, true);
}

using ChannelFor = std::function<Channel(const std::string& address, const std::string& key)>;

inline void carry_out(std::vector<std::string> arguments, const ChannelFor& channel_for) {
    std::string address = "127.0.0.1:9900";
    if (!arguments.empty() && !ARGUMENTS.count(arguments[0])) {
        address = arguments[0];
        arguments.erase(arguments.begin());
    }
    auto known = arguments.empty() ? ARGUMENTS.end() : ARGUMENTS.find(arguments[0]);
    if (known == ARGUMENTS.end() || arguments.size() - 1 != known->second)
        throw Failure(USAGE, "usage: [HOST:PORT] put KEY VALUE | get KEY | del KEY");
    const auto &command = arguments[0], &key = arguments[1];
    auto channel = channel_for(address, key);
    if (command == "put") put(channel, key, arguments[2]);
    if (command == "del") del(channel, key);
    if (command == "get") {
        std::cout << get(channel, key) << (isatty(STDOUT_FILENO) ? "\n" : "") << std::flush;
        if (!std::cout) throw Failure(NOTHING_DONE, "the value cannot be written to stdout");
    }
}

// Runs to an exit code, and says on stderr why it isn't 0.
inline int run(int argc, char** argv, const ChannelFor& channel_for) {
    try {
        carry_out({argv + 1, argv + argc}, channel_for);
        return OK;
    } catch (const Failure& failure) {
        std::cerr << argv[0] << ": " << failure.what() << std::endl;
        return failure.exit_code;
    }
}

}  // namespace client
