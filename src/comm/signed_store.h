// A store whose values carry a keyed hash, for a network on which others may reach it: what was not written by somebody
// who knows the job's secret is an error where it is read, and never believed. Counters cannot be signed.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <optional>
#include <string>

namespace conclave {

// The content of the file that CONCLAVE_SECRET_FILE names; nothing where it is not set. A file that others may read, or
// that is too short to be a secret, is a UserError.
std::optional<std::string> secret_of_job();

class SignedStore final : public c10d::Store {
 public:
  SignedStore(c10::intrusive_ptr<c10d::Store> store, std::string secret);

  c10::intrusive_ptr<c10d::Store> clone() override;
  using c10d::Store::compareSet;
  using c10d::Store::set;
  void set(const std::string& key, const std::vector<uint8_t>& value) override;
  std::vector<uint8_t> compareSet(const std::string& key, const std::vector<uint8_t>& expected,
                                  const std::vector<uint8_t>& desired) override;
  // Throws ForeignTextError.
  std::vector<uint8_t> get(const std::string& key) override;
  std::vector<std::vector<uint8_t>> multiGet(const std::vector<std::string>& keys) override;
  void multiSet(const std::vector<std::string>& keys, const std::vector<std::vector<uint8_t>>& values) override;
  int64_t add(const std::string& key, int64_t value) override;
  bool deleteKey(const std::string& key) override { return store_->deleteKey(key); }
  bool check(const std::vector<std::string>& keys) override { return store_->check(keys); }
  int64_t getNumKeys() override { return store_->getNumKeys(); }
  void wait(const std::vector<std::string>& keys) override { store_->wait(keys); }
  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) override {
    store_->wait(keys, timeout);
  }
  const std::chrono::milliseconds& getTimeout() const noexcept override { return store_->getTimeout(); }
  void setTimeout(const std::chrono::milliseconds& timeout) override { store_->setTimeout(timeout); }

 private:
  std::vector<uint8_t> sign(const std::string& key, const std::vector<uint8_t>& value) const;
  std::vector<uint8_t> verify(const std::string& key, const std::vector<uint8_t>& text) const;

  const c10::intrusive_ptr<c10d::Store> store_;
  const std::string secret_;
};

}  // namespace conclave
