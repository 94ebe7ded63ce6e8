// test_routing VECTORS [HOST:PORT]: with a node's address, its answers are compared, too.

#include <fstream>
#include <iterator>

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include "routing.hpp"

namespace pb = routing::pb;
using google::protobuf::ListValue;
using Addresses = std::vector<std::string>;

template <class Value>
void expect(const std::string& what, const Value& found, const Value& expected) {
    if (found != expected) throw std::runtime_error(what + " is not as expected");
}

ListValue read_vectors(const char* path) {
    std::ifstream file(path);
    std::string text{std::istreambuf_iterator<char>(file), {}};
    google::protobuf::Struct json;
    auto status = google::protobuf::util::JsonStringToMessage(text, &json);
    auto vectors = json.fields().find("vectors");
    if (!status.ok() || vectors == json.fields().end() || vectors->second.list_value().values().empty())
        throw std::runtime_error("no vectors in " + std::string(path));
    return vectors->second.list_value();
}

std::string hex(const routing::Token& token) {
    std::string text;
    for (auto byte : token) text += {"0123456789abcdef"[byte >> 4], "0123456789abcdef"[byte & 15]};
    return text;
}

pb::Table table(std::vector<routing::Row> rows) {
    pb::Table table;
    table.set_stride(rows[0].size());
    for (const auto& row : rows) table.mutable_owners()->Add(row.begin(), row.end());
    return table;
}

void test_tokens_and_segments_are_the_published_ones(const ListValue& vectors) {
    for (const auto& vector : vectors.values()) {
        const auto& fields = vector.struct_value().fields();
        auto key = fields.at("key").string_value();
        expect("the token of " + key, hex(routing::token(key)), fields.at("token").string_value());
        for (const auto& [count, segment] : fields.at("segment_by_count").struct_value().fields())
            expect<double>("the segment of " + key, routing::segment(key, std::stoul(count)), segment.number_value());
    }
}

void test_owners_are_read_off_the_tables() {
    const std::string low = "a", high = "b";  // tokens 0c... and 92...
    pb::Layout layout;
    for (auto name : {"m0", "m1", "m2"}) layout.add_members()->set_address(name);
    layout.set_segments(2);
    layout.set_phase(pb::PHASE_STABLE);
    *layout.mutable_current() = table({{2, 0}, {1, 3}});  // 3 members: 3 marks a vacant entry
    expect("stable, low", routing::owners(layout, low), Addresses{"m2", "m0"});
    expect("stable, high", routing::owners(layout, high), Addresses{"m1"});

    layout.mutable_next()->add_segments(0);
    *layout.mutable_next()->mutable_rows() = table({{1, 0}});
    layout.set_phase(pb::PHASE_DUAL);  // m0 is in both
    expect("dual, low", routing::owners(layout, low), Addresses{"m0", "m2"});
    expect("dual, high", routing::owners(layout, high), Addresses{"m1"});
    layout.set_phase(pb::PHASE_READ_NEW);
    expect("read new, low", routing::owners(layout, low), Addresses{"m0", "m1"});
    expect("read new, high", routing::owners(layout, high), Addresses{"m1"});

    layout.mutable_current()->set_stride(-1);  // a table that is shorter than it says
    expect("cut off", routing::owners(layout, high), Addresses{});
}

void test_a_node_says_the_same(const ListValue& vectors, const std::string& node) {
    auto channel = client::connected(node);
    auto layout = routing::fetch_layout(channel);
    for (const auto& vector : vectors.values()) {
        pb::LocateRequest request;
        request.set_key(vector.struct_value().fields().at("key").string_value());
        auto said = client::call(*pb::Location::NewStub(channel), &pb::Location::Stub::Locate, request, false);
        Addresses addresses;
        for (const auto& owner : said.owners()) addresses.push_back(owner.address());
        expect("the segment of " + request.key(), routing::segment(request.key(), layout.segments()), said.segment());
        expect("the owners of " + request.key(), routing::owners(layout, request.key()), addresses);
    }
}

int main(int argc, char** argv) {
    if (argc < 2) throw std::runtime_error("usage: test_routing VECTORS [HOST:PORT]");
    auto vectors = read_vectors(argv[1]);
    test_tokens_and_segments_are_the_published_ones(vectors);
    test_owners_are_read_off_the_tables();
    if (argc > 2) test_a_node_says_the_same(vectors, argv[2]);
}
