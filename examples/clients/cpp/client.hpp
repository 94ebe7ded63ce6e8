// A thrifty client: any node takes any request.
//
//     client [HOST:PORT] put [--ttl-ms MILLISECONDS] KEY VALUE
//     client [HOST:PORT] get KEY
//     client [HOST:PORT] del KEY
//     client [HOST:PORT] batch          lines of stdin: put KEY VALUE | get KEY | del KEY
//     client [HOST:PORT] ls [PREFIX]    the keys that begin with it
//
// Exit codes: 0 ok, 1 no such key, 2 wrong usage, 3 nothing done, 5 outcome unknown.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <absl/status/status.h>
#include <grpcpp/grpcpp.h>

#include "thrifty/store/v1/store.grpc.pb.h"

namespace client {

namespace pb = thrifty::store::v1;
using Channel = std::shared_ptr<grpc::Channel>;
using Clock = std::chrono::system_clock;

constexpr auto USAGE_LINE =
    "usage: [HOST:PORT] put [--ttl-ms MILLISECONDS] KEY VALUE | get KEY | del KEY | batch | ls [PREFIX]";
// How few and how many arguments a command takes.
const std::map<std::string, std::pair<size_t, size_t>> ARGUMENTS = {
    {"put", {2, 2}}, {"get", {1, 1}}, {"del", {1, 1}}, {"batch", {0, 0}}, {"ls", {0, 1}}};
constexpr std::chrono::seconds CONNECT_TIME{2};
constexpr std::chrono::seconds REQUEST_TIME{5};  // sent along: the server gives up in time to say how far it got
constexpr int RESUMES = 4;                       // of a scan, one after the other that bring nothing
constexpr std::chrono::milliseconds PAUSE{100};  // before the first of them; doubles

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
inline Failure meaning(int code, const std::string& details, bool nothing_done) {
    // gRPC's codes are Abseil's, which have names.
    auto message = absl::StatusCodeToString(static_cast<absl::StatusCode>(code)) + ": " + details;
    switch (code) {
    case grpc::NOT_FOUND:
        return {NOT_FOUND, message};
    case grpc::INVALID_ARGUMENT:
    case grpc::OUT_OF_RANGE:
    case grpc::FAILED_PRECONDITION:
    case grpc::PERMISSION_DENIED:
    case grpc::UNIMPLEMENTED:  // a node of the location service, which stores nothing
        return {USAGE, message};
    }
    if (nothing_done) return {NOTHING_DONE, message + " (try again later)"};
    // ABORTED, DEADLINE_EXCEEDED, a broken connection, and whatever else a write may end with.
    return {OUTCOME_UNKNOWN, message + " (it may have happened or not: read before you repeat it)"};
}

// What the failure of a call means for the caller.
inline Failure failure(const grpc::Status& status, bool writes) {
    auto code = status.error_code();
    // UNAVAILABLE comes with RetryInfo if the server says so, and without if the connection broke.
    bool says_so = status.error_details().find("google.rpc.RetryInfo") != std::string::npos;
    bool refused = (code == grpc::UNAVAILABLE && says_so) || code == grpc::RESOURCE_EXHAUSTED;
    return meaning(code, status.error_message(), refused || !writes);
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

inline void put(const Channel& channel, const std::string& key, const std::string& value,
                std::optional<uint64_t> ttl_ms) {
    pb::PutRequest request;
    request.set_key(key);
    request.set_value(value);
    if (ttl_ms) request.set_ttl_ms(*ttl_ms);
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

// What came of one item of a batch: the value, or what went wrong.
struct Outcome {
    ExitCode exit_code;
    std::string text;
};

inline Outcome outcome(const pb::BatchItem& item, const pb::BatchResult& result) {
    if (item.has_get() && result.has_get()) return {OK, result.get().value()};
    if ((item.has_put() && result.has_put()) || (item.has_delete_() && result.has_delete_())) return {OK, "done"};
    if (!result.has_failure()) {
        auto failed = meaning(grpc::UNKNOWN, "a result of another kind", item.has_get());
        return {failed.exit_code, failed.what()};
    }
    const auto& said = result.failure();
    // The value did not fit into the answer any more.
    if (said.code() == grpc::OUT_OF_RANGE) return {NOTHING_DONE, "OUT_OF_RANGE: " + said.message()};
    // A failure says outright whether anything was done.
    auto failed = meaning(said.code(), said.message(), item.has_get() || !said.outcome_unknown());
    return {failed.exit_code, failed.what()};
}

// Carries many requests out in one.
inline std::vector<Outcome> batch(const Channel& channel, const pb::BatchRequest& request) {
    const auto& items = request.items();
    bool writes = std::any_of(items.begin(), items.end(), [](auto& item) { return !item.has_get(); });
    auto response = call(*pb::Store::NewStub(channel), &pb::Store::Stub::Batch, request, writes);
    if (response.results_size() != items.size()) throw meaning(grpc::INTERNAL, "results are missing", !writes);
    std::vector<Outcome> outcomes;
    for (int i = 0; i < items.size(); ++i) outcomes.push_back(outcome(items[i], response.results(i)));
    return outcomes;
}

// Hands out the keys that begin with the prefix. A stream that breaks is resumed where it was.
inline void scan(const Channel& channel, const std::string& prefix,
                 const std::function<void(const std::string&)>& found) {
    auto stub = pb::Store::NewStub(channel);
    pb::ScanRequest request;
    request.set_prefix(prefix);
    request.set_keys_only(true);
    for (int broken = 0;; ++broken) {
        grpc::ClientContext context;
        context.set_deadline(Clock::now() + REQUEST_TIME);
        auto stream = stub->Scan(&context, request);
        bool done = false;
        for (pb::ScanResponse page; stream->Read(&page); broken = 0) {
            for (const auto& item : page.items()) found(item.key());
            request.set_page_token(page.page_token());
            done = page.page_token().empty();
        }
        auto status = stream->Finish();
        if (done) return;
        auto failed = status.ok() ? Failure(NOTHING_DONE, "the scan stopped before its end") : failure(status, false);
        if (failed.exit_code != NOTHING_DONE || broken == RESUMES) throw failed;
        std::this_thread::sleep_for(PAUSE * (1 << broken));
    }
}

// What comes before the first space, and what comes behind it, if there is one.
inline std::pair<std::string, std::optional<std::string>> cut(const std::string& text) {
    auto space = text.find(' ');
    if (space == std::string::npos) return {text, std::nullopt};
    return {text.substr(0, space), text.substr(space + 1)};
}

inline pb::BatchItem batch_item(const std::string& line) {
    auto [command, rest] = cut(line);
    auto [key, value] = cut(rest.value_or(""));
    pb::BatchItem item;
    if (command == "put" && value) {
        item.mutable_put()->set_key(key);
        item.mutable_put()->set_value(*value);
    } else if (command == "get" && rest && !value) {
        item.mutable_get()->set_key(key);
    } else if (command == "del" && rest && !value) {
        item.mutable_delete_()->set_key(key);
    } else {
        throw Failure(USAGE, "every line of a batch is put KEY VALUE | get KEY | del KEY: nothing was done");
    }
    return item;
}

// Carries out the lines of stdin, and prints what came of each. Fails as the worst of them.
inline void print_batch(const Channel& channel, const pb::BatchRequest& request) {
    ExitCode worst = OK;
    int failed = 0;
    for (const auto& [exit_code, text] : batch(channel, request)) {
        std::cout << exit_code << ' ' << text << '\n';
        worst = std::max(worst, exit_code);
        failed += exit_code != OK;
    }
    if (failed > 0)
        throw Failure(worst, std::to_string(failed) + " of " + std::to_string(request.items_size()) + " failed");
}

// At most 15 digits.
inline bool is_number(const std::string& text) {
    return !text.empty() && text.size() <= 15 && text.find_first_not_of("0123456789") == std::string::npos;
}

// The key is empty if there is not just one.
using ChannelFor = std::function<Channel(const std::string& address, const std::string& key)>;

inline void carry_out(std::deque<std::string> words, const ChannelFor& channel_for) {
    std::string address = "127.0.0.1:9900", command;
    if (!words.empty() && !ARGUMENTS.count(words[0])) address = words[0], words.pop_front();
    if (!words.empty()) command = words[0], words.pop_front();
    std::optional<uint64_t> ttl_ms;
    if (command == "put" && words.size() == 4 && words[0] == "--ttl-ms" && is_number(words[1])) {
        ttl_ms = std::stoull(words[1]);
        words.erase(words.begin(), words.begin() + 2);
    }
    auto known = ARGUMENTS.find(command);
    if (known == ARGUMENTS.end() || words.size() < known->second.first || words.size() > known->second.second)
        throw Failure(USAGE, USAGE_LINE);
    pb::BatchRequest lines;
    if (command == "batch")
        for (std::string line; std::getline(std::cin, line);) *lines.add_items() = batch_item(line);
    bool of_one_key = command != "batch" && command != "ls";
    auto channel = channel_for(address, of_one_key ? words[0] : "");
    if (command == "put") put(channel, words[0], words[1], ttl_ms);
    if (command == "get") std::cout << get(channel, words[0]) << (isatty(STDOUT_FILENO) ? "\n" : "");
    if (command == "del") del(channel, words[0]);
    if (command == "batch") print_batch(channel, lines);
    if (command == "ls") scan(channel, words.empty() ? "" : words[0], [](auto& key) { std::cout << key << '\n'; });
    if (!std::cout.flush())
        throw Failure(command == "batch" ? OUTCOME_UNKNOWN : NOTHING_DONE, "stdout cannot be written to");
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
