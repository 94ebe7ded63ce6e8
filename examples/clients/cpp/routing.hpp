// Asks a key's owner itself, and so spares the ring a hop.
//
//     routing [HOST:PORT] put KEY VALUE | get KEY | del KEY
//
// HOST:PORT is any node of the ring: it is asked for the layout. The rest is as with client.hpp.
// Which node was chosen is said on stderr. What concerns many keys is asked of HOST:PORT itself.
#pragma once

#include <algorithm>
#include <array>

#include <openssl/evp.h>

#include "client.hpp"
#include "thrifty/location/v1/location.grpc.pb.h"

namespace routing {

namespace pb = thrifty::location::v1;
using Token = std::array<unsigned char, 16>;
using Row = std::vector<uint32_t>;

// A key's point on the ring, a number of 128 bits, the highest first.
inline Token token(const std::string& key) {
    Token token;
    if (!EVP_Digest(key.data(), key.size(), token.data(), nullptr, EVP_md5(), nullptr))
        throw std::runtime_error("this OpenSSL does no MD5");
    return token;
}

// Which of the ring's `segments` (a power of two) a key falls into: the top bits of its token.
inline uint32_t segment(const std::string& key, uint32_t segments) {
    auto top = token(key);
    uint64_t high = uint64_t{top[0]} << 24 | top[1] << 16 | top[2] << 8 | top[3];
    return high * segments >> 32;
}

// The owners in one row of a table, as indexes into the members. What is no index ends the row.
inline Row row(const pb::Table& table, uint64_t index, uint32_t members) {
    Row row;
    for (uint64_t at = index * table.stride(); at < (index + 1) * table.stride(); ++at) {
        if (at >= uint64_t(table.owners_size()) || table.owners(at) >= members) break;
        row.push_back(table.owners(at));
    }
    return row;
}

inline bool contains(const Row& row, uint32_t member) { return std::find(row.begin(), row.end(), member) != row.end(); }

// The addresses of the members to send a key's requests to, the best first.
inline std::vector<std::string> owners(const pb::Layout& layout, const std::string& key) {
    auto at = segment(key, layout.segments());
    auto current = row(layout.current(), at, layout.members_size()), next = current;
    const auto& changed = layout.next().segments();
    auto change = std::find(changed.begin(), changed.end(), at);
    if (change != changed.end()) next = row(layout.next().rows(), change - changed.begin(), layout.members_size());
    auto best = layout.phase() == pb::PHASE_READ_NEW ? next : current;
    // While the ring changes, an owner in both tables coordinates best.
    std::stable_partition(best.begin(), best.end(), [&](auto member) {
        return contains(current, member) && contains(next, member);
    });
    std::vector<std::string> addresses;
    for (auto member : best) addresses.push_back(layout.members(member).address());
    return addresses;
}

// The layout of the ring. A client that lives longer than one request keeps it, and fetches
// another when the `epoch` in an answer is newer than the layout's.
inline pb::Layout fetch_layout(const client::Channel& channel) {
    return client::call(*pb::Location::NewStub(channel), &pb::Location::Stub::GetLayout, {}, false).layout();
}

// A channel to a key's owner; to the seed if there is no one key or no owner can be reached, for
// every node forwards.
inline client::Channel owners_channel(const std::string& seed, const std::string& key) {
    if (key.empty()) return client::connected(seed);
    auto layout = fetch_layout(client::connected(seed));
    auto addresses = owners(layout, key);
    addresses.push_back(seed);
    for (const auto& address : addresses) {
        try {
            auto channel = client::connected(address);
            std::cerr << "segment " << segment(key, layout.segments()) << " of " << layout.segments() << ": asking "
                      << address << std::endl;
            return channel;
        } catch (const client::Failure&) {
            continue;
        }
    }
    throw client::Failure(client::NOTHING_DONE, "no node of the ring answers: nothing was done");
}

}  // namespace routing
