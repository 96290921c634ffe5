#include "comm/signed_store.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "base/error.h"
#include "comm/environment.h"
#include "comm/foreign_text.h"

namespace conclave {
namespace {

constexpr size_t hash_bytes = 32;
constexpr size_t least_secret = 16;

using Hash = std::array<uint8_t, hash_bytes>;

// HMAC-SHA-256 of the parts, each with its length before it, so that none runs into the next.
Hash keyed_hash(const std::string& secret, std::initializer_list<std::string> parts) {
  std::string text;
  for (const std::string& part : parts) text += fmt::format("{}:{}", part.size(), part);
  Hash hash{};
  unsigned length = 0;
  if (HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()), reinterpret_cast<const uint8_t*>(text.data()),
           text.size(), hash.data(), &length) == nullptr ||
      length != hash_bytes)
    throw std::runtime_error("OpenSSL offers no HMAC-SHA-256, which CONCLAVE_SECRET_FILE asks for");
  return hash;
}

}  // namespace

std::optional<std::string> secret_of_job() {
  const auto name = variable("CONCLAVE_SECRET_FILE");
  if (!name) return {};
  const auto refuse = [&](const std::string& why) { user_error("CONCLAVE_SECRET_FILE is \"{}\", {}", *name, why); };
  struct stat state {};
  if (::stat(name->c_str(), &state) != 0) refuse(fmt::format("which cannot be read: {}.", std::strerror(errno)));
  if (!S_ISREG(state.st_mode)) refuse("which is not a file.");
  if ((state.st_mode & (S_IRWXG | S_IRWXO)) != 0)
    refuse(fmt::format("which other users may read (mode {:o}). Run: chmod 600 {}", state.st_mode & 0777, *name));
  if (state.st_size > (1 << 20)) refuse("which is larger than a secret: use at most a megabyte.");
  std::ifstream file(*name, std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  if (!file) refuse(fmt::format("which cannot be read: {}.", std::strerror(errno)));
  const size_t length = content.find_last_not_of("\r\n") + 1;
  if (length < least_secret)
    refuse(fmt::format("which holds {} bytes, and a secret needs {}. Make one: head -c 32 /dev/urandom | base64 > {}",
                       length, least_secret, *name));
  std::optional<std::string> secret;
  secret.emplace(content, 0, length);
  return secret;
}

SignedStore::SignedStore(c10::intrusive_ptr<c10d::Store> store, std::string secret)
    : store_(std::move(store)), secret_(std::move(secret)) {}

c10::intrusive_ptr<c10d::Store> SignedStore::clone() {
  return c10::make_intrusive<SignedStore>(store_->clone(), secret_);
}

// Equal values of a key have equal hashes, so that compareSet() compares what it should.
std::vector<uint8_t> SignedStore::sign(const std::string& key, const std::vector<uint8_t>& value) const {
  const Hash hash = keyed_hash(secret_, {key, {value.begin(), value.end()}});
  std::vector<uint8_t> text(hash_bytes + value.size());
  std::copy(hash.begin(), hash.end(), text.begin());
  std::copy(value.begin(), value.end(), text.begin() + hash_bytes);
  return text;
}

std::vector<uint8_t> SignedStore::verify(const std::string& key, const std::vector<uint8_t>& text) const {
  if (text.size() >= hash_bytes) {
    std::vector<uint8_t> value(text.begin() + hash_bytes, text.end());
    const Hash hash = keyed_hash(secret_, {key, {value.begin(), value.end()}});
    if (CRYPTO_memcmp(hash.data(), text.data(), hash_bytes) == 0) return value;
  }
  throw ForeignTextError("the value of " + key, {text.begin(), text.end()});
}

void SignedStore::set(const std::string& key, const std::vector<uint8_t>& value) {
  store_->set(key, sign(key, value));
}

std::vector<uint8_t> SignedStore::compareSet(const std::string& key, const std::vector<uint8_t>& expected,
                                             const std::vector<uint8_t>& desired) {
  const std::vector<uint8_t> was = expected.empty() ? expected : sign(key, expected);
  return verify(key, store_->compareSet(key, was, sign(key, desired)));
}

std::vector<uint8_t> SignedStore::get(const std::string& key) {
  return verify(key, store_->get(key));
}

std::vector<std::vector<uint8_t>> SignedStore::multiGet(const std::vector<std::string>& keys) {
  std::vector<std::vector<uint8_t>> values;
  for (const std::string& key : keys) values.push_back(get(key));
  return values;
}

void SignedStore::multiSet(const std::vector<std::string>& keys, const std::vector<std::vector<uint8_t>>& values) {
  for (size_t i = 0; i < keys.size(); ++i) set(keys[i], values.at(i));
}

int64_t SignedStore::add(const std::string& key, int64_t /*value*/) {
  throw std::logic_error("a signed store has no counters: " + key);
}

}  // namespace conclave
