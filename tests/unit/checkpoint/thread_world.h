// Ranks as threads of one process, and a folder for a test's files.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <barrier>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "comm/communicator.h"

namespace conclave {

// Meeting place of the ranks: each puts its tensor on the table, all wait, each reads what it needs, all wait.
struct Table {
  explicit Table(int size) : tensors(static_cast<size_t>(size)), meet(size) {}
  std::vector<at::Tensor> tensors;
  std::barrier<> meet;
};

class ThreadCommunicator : public Communicator {
 public:
  ThreadCommunicator(int rank, int size, std::shared_ptr<Table> table)
      : Communicator("world", rank, size), table_(std::move(table)) {}

  Pending all_gather(at::Tensor output, at::Tensor input) override {
    exchange(input, [&] { output.copy_(at::cat(table_->tensors)); });
    return {};
  }
  Pending all_reduce(at::Tensor tensor, Reduction reduction) override {
    at::Tensor result;
    exchange(tensor, [&] {
      const at::Tensor all = at::stack(table_->tensors);
      result = reduction == Reduction::sum ? all.sum(0) : std::get<0>(all.max(0));
    });
    tensor.copy_(result);
    return {};
  }
  Pending broadcast(at::Tensor tensor, int root) override {
    at::Tensor result;
    exchange(tensor, [&] { result = table_->tensors[static_cast<size_t>(root)].clone(); });
    tensor.copy_(result);
    return {};
  }
  void barrier() override { table_->meet.arrive_and_wait(); }
  Pending reduce_scatter(at::Tensor, at::Tensor) override { throw std::logic_error("not needed by checkpoints"); }
  Pending all_to_all(at::Tensor, at::Tensor, std::vector<int64_t>, std::vector<int64_t>) override {
    throw std::logic_error("not needed by checkpoints");
  }

 private:
  void exchange(const at::Tensor& own, const std::function<void()>& read) {
    table_->tensors[static_cast<size_t>(rank())] = own;
    table_->meet.arrive_and_wait();
    read();
    table_->meet.arrive_and_wait();
  }
  std::shared_ptr<Table> table_;
};

// Runs `work` on every rank of a world; returns what each rank threw, "" for nothing.
inline std::vector<std::string> run_ranks(int size, const std::function<void(Communicator&)>& work) {
  const auto table = std::make_shared<Table>(size);
  std::vector<std::string> failures(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadCommunicator world(rank, size, table);
      try {
        work(world);
      } catch (const std::exception& error) {
        failures[static_cast<size_t>(rank)] = error.what();
      }
      table->meet.arrive_and_drop();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return failures;
}

inline std::vector<std::string> no_failures(int size) {
  return std::vector<std::string>(static_cast<size_t>(size));
}

class TestFolder {
 public:
  TestFolder() : path_(make()) {}
  ~TestFolder() { std::filesystem::remove_all(path_); }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  static std::filesystem::path make() {
    std::string name = (std::filesystem::temp_directory_path() / "checkpoint-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make a folder for the test");
    return name;
  }
  std::filesystem::path path_;
};

inline std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// What a call throws, "" for nothing; only exceptions of type E are caught.
template <class E>
std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const E& error) {
    return error.what();
  }
  return "";
}

}  // namespace conclave
