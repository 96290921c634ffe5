#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <random>

#include "base/error.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_reader.h"
#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/host_tensors.h"
#include "checkpoint/together.h"
#include "thread_world.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::Each;
using testing::HasSubstr;
using testing::Not;

constexpr uint64_t small_block = 64;  // bytes: 16 fp32 elements, so that pieces have several hash blocks

struct GlobalTensor {
  std::string name;
  std::vector<int64_t> shape;
  at::Tensor values;  // flat
};

// What is saved, as one process would hold it: random bits, so that no two places look alike.
const std::vector<GlobalTensor>& global_tensors() {
  static const std::vector<GlobalTensor> tensors = [] {
    std::vector<GlobalTensor> made;
    at::manual_seed(7);
    for (std::string_view kind : {"parameter", "exp_avg", "exp_avg_sq"}) {
      made.push_back({state_tensor_name(kind, "experts.gate_up_proj"), {4, 6, 5}, at::randn({120})});
      made.push_back({state_tensor_name(kind, "norm.weight"), {7}, at::randn({7})});
    }
    made.push_back({"counts", {3}, at::tensor({int64_t{1} << 40, int64_t{-1}, int64_t{5}}, at::kLong)});
    made.push_back({"half", {2, 3}, at::randn({6}).to(at::kBFloat16)});
    made.push_back({"nothing", {0, 4}, at::zeros({0})});
    return made;
  }();
  return tensors;
}

// A rank's part when `shards` divide every tensor evenly, `replicas` times over.
struct Division {
  int shards;
  int replicas = 1;
  int ranks() const { return shards * replicas; }
};

std::vector<TensorSlice> slices_of(int shard, int shards, bool filled) {
  std::vector<TensorSlice> slices;
  for (const GlobalTensor& tensor : global_tensors()) {
    const int64_t begin = tensor.values.numel() * shard / shards, end = tensor.values.numel() * (shard + 1) / shards;
    const at::Tensor part = tensor.values.narrow(0, begin, end - begin).clone();
    slices.push_back({tensor.name, tensor.shape, begin, filled ? part : at::full_like(part, -99)});
  }
  return slices;
}

CheckpointState state_at(int64_t step) {
  return {.step = step, .samples = step * 32, .seed = 7, .job = {{"schedule.kind", "cosine"}}};
}

std::vector<std::string> save(
    const std::filesystem::path& folder, int64_t step, Division division,
    const std::function<void(int rank, std::vector<TensorSlice>&)>& change = [](int, auto&) {}) {
  return run_ranks(division.ranks(), [&](Communicator& world) {
    std::vector<TensorSlice> slices =
        share_among_replicas(slices_of(world.rank() % division.shards, division.shards, true),
                             world.rank() / division.shards, division.replicas);
    change(world.rank(), slices);
    save_checkpoint(folder, state_at(step), slices, world, small_block);
  });
}

void expect_loads(const std::filesystem::path& checkpoint, int64_t step, HashCheck hashes = HashCheck::verify) {
  for (int shards : {1, 2, 3, 4, 8, 13}) {
    for (int shard = 0; shard < shards; ++shard) {
      CheckpointReader reader(checkpoint);
      EXPECT_EQ(reader.state(), state_at(step));
      const std::vector<TensorSlice> loaded = slices_of(shard, shards, false),
                                     expected = slices_of(shard, shards, true);
      reader.load(loaded, hashes);
      for (size_t i = 0; i < loaded.size(); ++i) {
        EXPECT_TRUE(loaded[i].data.equal(expected[i].data))
            << loaded[i].name << ", shard " << shard << " of " << shards;
      }
    }
  }
}

std::string load_failure(const std::filesystem::path& checkpoint, HashCheck hashes = HashCheck::verify) {
  return message_of<UserError>([&] { CheckpointReader(checkpoint).load(slices_of(0, 1, false), hashes); });
}

std::vector<std::string> entries_of(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// Changes one byte.
void flip_bit(const std::filesystem::path& path, size_t place) {
  std::string bytes = read_bytes(path);
  bytes.at(place) = static_cast<char>(bytes.at(place) ^ 4);
  write_bytes(path, bytes);
}

// Oracle: the global tensors. Exact: bits are copied.
TEST(Checkpoint, loads_at_every_division_whatever_the_one_it_was_saved_at) {
  for (Division division : {Division{1}, {2}, {3}, {4}, {2, 2}, {1, 3}, {8}, {4, 2}}) {
    const TestFolder folder;
    ASSERT_EQ(save(folder.path(), 100, division), no_failures(division.ranks()));
    EXPECT_EQ(entries_of(folder.path()), (std::vector<std::string>{"latest", "step-00000100"}));
    expect_loads(folder / "step-00000100", 100);
    expect_loads(folder / "step-00000100", 100, HashCheck::skip);
  }
}

TEST(Checkpoint, replicas_write_disjoint_parts) {
  const TestFolder folder;
  ASSERT_EQ(save(folder.path(), 1, {2, 2}), no_failures(4));
  uint64_t bytes = 0;
  const CheckpointReader reader(folder / "step-00000001");
  for (const auto& [name, tensor] : reader.manifest().tensors) {
    for (const Piece& piece : tensor.pieces)
      bytes += static_cast<uint64_t>(piece.end - piece.begin) * bits_of(tensor.dtype) / 8;
  }
  EXPECT_EQ(bytes, 4u * 3 * (120 + 7) + 8 * 3 + 2 * 6);
}

TEST(Checkpoint, large_pieces_are_read_across_hash_blocks) {
  const TestFolder folder;
  const int64_t count = 3 * static_cast<int64_t>(default_hash_block_bytes) / 4 + 123;
  const at::Tensor values = at::arange(count).remainder(65521).to(at::kFloat);
  ASSERT_EQ(
      run_ranks(2,
                [&](Communicator& world) {
                  const int64_t half = count / 2, begin = world.rank() * half, end = world.rank() == 0 ? half : count;
                  const std::vector<TensorSlice> slices = {{"t", {count}, begin, values.narrow(0, begin, end - begin)}};
                  save_checkpoint(folder.path(), {}, slices, world);
                }),
      no_failures(2));
  const int64_t block = static_cast<int64_t>(default_hash_block_bytes) / 4;
  for (const auto& [begin, length] : std::vector<std::pair<int64_t, int64_t>>{
           {0, count}, {count - 1, 1}, {block - 1, 2}, {7, block}, {count / 2 - 1, 2}, {block, block}}) {
    for (HashCheck hashes : {HashCheck::verify, HashCheck::skip}) {
      const std::vector<TensorSlice> loaded = {{"t", {count}, begin, at::zeros({length})}};
      CheckpointReader(folder / "step-00000000").load(loaded, hashes);
      EXPECT_TRUE(loaded[0].data.equal(values.narrow(0, begin, length))) << begin << " + " << length;
    }
  }
}

TEST(Checkpoint, a_job_with_other_tensors_is_refused) {
  const TestFolder folder;
  ASSERT_EQ(save(folder.path(), 1, {1}), no_failures(1));
  CheckpointReader reader(folder / "step-00000001");
  const auto load = [&](const std::string& name, std::vector<int64_t> shape, at::ScalarType type) {
    return message_of<UserError>([&] {
      reader.load(std::vector<TensorSlice>{{name, shape, 0, at::zeros({1}, type)}});
    });
  };
  EXPECT_THAT(load("absent", {7}, at::kFloat), AllOf(HasSubstr("step-00000001"), HasSubstr("\"absent\"")));
  EXPECT_THAT(load("parameter/norm.weight", {8}, at::kFloat),
              AllOf(HasSubstr("\"parameter/norm.weight\""), HasSubstr("[7]"), HasSubstr("[8]")));
  EXPECT_THAT(load("parameter/norm.weight", {7}, at::kHalf),
              AllOf(HasSubstr("\"parameter/norm.weight\""), HasSubstr("F32"), HasSubstr("Half")));

  std::vector<std::string> names;
  for (const GlobalTensor& tensor : global_tensors()) names.push_back(tensor.name);
  EXPECT_NO_THROW(reader.expect_tensors(names));
  names.push_back("more");
  EXPECT_THAT(message_of<UserError>([&] { reader.expect_tensors(names); }), HasSubstr("no tensor \"more\""));
  names.pop_back();
  names.erase(names.begin());
  EXPECT_THAT(message_of<UserError>([&] { reader.expect_tensors(names); }),
              HasSubstr("\"parameter/experts.gate_up_proj\", which this job"));
}

// Every byte of a shard's data is some tensor's: whichever is changed, its block's hash tells.
TEST(Checkpoint, a_flipped_bit_anywhere_is_named_by_file_and_tensor) {
  const TestFolder folder;
  ASSERT_EQ(save(folder.path(), 1, {2}), no_failures(2));
  const std::filesystem::path file = folder / "step-00000001" / "rank-00001.safetensors";
  const SafetensorsReader reader(file);
  const std::string whole = read_bytes(file);
  for (const StoredTensor& tensor : reader.tensors()) {
    for (uint64_t place : {tensor.begin, (tensor.begin + tensor.end) / 2, tensor.end - 1}) {
      flip_bit(file, place);
      const std::string name = tensor.name.substr(0, tensor.name.find('['));
      EXPECT_THAT(load_failure(folder / "step-00000001"),
                  AllOf(HasSubstr("rank-00001.safetensors"), HasSubstr("\"" + name + "\""), HasSubstr("hash")));
      EXPECT_EQ(load_failure(folder / "step-00000001", HashCheck::skip), "");
      write_bytes(file, whole);
    }
  }
  EXPECT_EQ(load_failure(folder / "step-00000001"), "");
}

TEST(Checkpoint, a_damaged_folder_is_named_and_the_next_newest_is_taken) {
  struct Case {
    std::function<void(const std::filesystem::path&)> damage;
    std::string said;
  };
  const auto replace_in_manifest = [](const std::filesystem::path& checkpoint, const std::string& from,
                                      const std::string& to) {
    std::string text = read_bytes(checkpoint / manifest_file_name);
    ASSERT_NE(text.find(from), std::string::npos);
    write_bytes(checkpoint / manifest_file_name, text.replace(text.find(from), from.size(), to));
  };
  const std::vector<Case> cases = {
      {[](const auto& c) { std::filesystem::remove(c / "rank-00001.safetensors"); },
       "rank-00001.safetensors is missing"},
      {[](const auto& c) {
         std::filesystem::resize_file(c / "rank-00001.safetensors",
                                      std::filesystem::file_size(c / "rank-00001.safetensors") - 1);
       },
       "rank-00001.safetensors has"},
      {[](const auto& c) { std::filesystem::resize_file(c / "rank-00000.safetensors", 0); },
       "rank-00000.safetensors has 0 bytes"},
      {[](const auto& c) { std::filesystem::remove(c / manifest_file_name); }, "no manifest.json"},
      {[](const auto& c) { std::filesystem::resize_file(c / manifest_file_name, 100); },
       "manifest.json is not valid JSON"},
      {[](const auto& c) { write_bytes(c / manifest_file_name, ""); }, "manifest.json is not valid JSON"},
      {[&](const auto& c) { replace_in_manifest(c, "\"step\":2", "\"step\":3"); },
       "manifest.json is damaged: its content does not fit its hash"},
      {[&](const auto& c) { replace_in_manifest(c, "\"end\":60", "\"end\":59"); }, "does not fit its hash"},
  };
  for (const Case& each : cases) {
    const TestFolder folder;
    ASSERT_EQ(save(folder.path(), 1, {2}), no_failures(2));
    ASSERT_EQ(save(folder.path(), 2, {2}), no_failures(2));
    EXPECT_EQ(newest_checkpoint(folder.path()), folder / "step-00000002");
    each.damage(folder / "step-00000002");
    EXPECT_THAT(load_failure(folder / "step-00000002"), HasSubstr(each.said));
    EXPECT_THAT(damage_of(folder / "step-00000002").value_or(""), HasSubstr(each.said));
    EXPECT_EQ(newest_checkpoint(folder.path()), folder / "step-00000001");
    expect_loads(folder / "step-00000001", 1);
  }
}

TEST(Checkpoint, exchanged_shards_are_noticed_even_without_hashes) {
  const TestFolder folder;
  ASSERT_EQ(run_ranks(2,
                      [&](Communicator& world) {
                        const std::vector<TensorSlice> slices = {{"t", {20}, world.rank() * 10, at::randn({10})}};
                        save_checkpoint(folder.path(), {}, slices, world, small_block);
                      }),
            no_failures(2));
  const std::filesystem::path checkpoint = folder / "step-00000000";
  std::filesystem::rename(checkpoint / "rank-00000.safetensors", checkpoint / "x");
  std::filesystem::rename(checkpoint / "rank-00001.safetensors", checkpoint / "rank-00000.safetensors");
  std::filesystem::rename(checkpoint / "x", checkpoint / "rank-00001.safetensors");
  const std::vector<TensorSlice> wanted = {{"t", {20}, 0, at::zeros({20})}};
  for (HashCheck hashes : {HashCheck::verify, HashCheck::skip}) {
    EXPECT_THAT(message_of<UserError>([&] { CheckpointReader(checkpoint).load(wanted, hashes); }),
                AllOf(HasSubstr("rank-0000"), HasSubstr("damaged")));
  }
}

TEST(Checkpoint, latest_decides_if_it_can) {
  const TestFolder folder;
  EXPECT_EQ(newest_checkpoint(folder / "absent"), std::nullopt);
  EXPECT_EQ(newest_checkpoint(folder.path()), std::nullopt);
  for (int64_t step : {9, 10, 100000000}) ASSERT_EQ(save(folder.path(), step, {1}), no_failures(1));
  EXPECT_EQ(newest_checkpoint(folder.path()), folder / "step-100000000");
  EXPECT_EQ(list_checkpoints(folder.path()),
            (std::vector<std::filesystem::path>{folder / "step-00000009", folder / "step-00000010",
                                                folder / "step-100000000"}));
  set_latest(folder.path(), "step-00000009");
  EXPECT_EQ(newest_checkpoint(folder.path()), folder / "step-00000009");
  for (const std::string& garbage :
       std::vector<std::string>{"", "step-9\n", "../step-00000009", "step-00000011\n", std::string(1000, 'x')}) {
    write_bytes(folder / "latest", garbage);
    EXPECT_EQ(newest_checkpoint(folder.path()), folder / "step-100000000") << garbage;
  }
  std::filesystem::remove(folder / "latest");
  EXPECT_EQ(newest_checkpoint(folder.path()), folder / "step-100000000");
  std::filesystem::create_directory(folder / "latest");
  EXPECT_EQ(newest_checkpoint(folder.path()), folder / "step-100000000");
}

TEST(Checkpoint, what_an_interrupted_save_left_is_passed_over_and_then_removed) {
  const TestFolder folder;
  ASSERT_EQ(save(folder.path(), 1, {2}), no_failures(2));
  std::filesystem::create_directory(folder / ".tmp-step-00000002");
  write_bytes(folder / ".tmp-step-00000002" / "rank-00000.safetensors", "half");
  write_bytes(folder / "latest.tmp-1234", "step");
  EXPECT_EQ(newest_checkpoint(folder.path()), folder / "step-00000001");
  ASSERT_EQ(save(folder.path(), 2, {2}), no_failures(2));
  EXPECT_EQ(entries_of(folder.path()), (std::vector<std::string>{"latest", "step-00000001", "step-00000002"}));
  expect_loads(folder / "step-00000002", 2);
}

TEST(Checkpoint, the_same_step_is_saved_again) {
  const TestFolder folder;
  ASSERT_EQ(save(folder.path(), 5, {3}), no_failures(3));
  ASSERT_EQ(save(folder.path(), 5, {2}), no_failures(2));
  EXPECT_EQ(entries_of(folder.path()), (std::vector<std::string>{"latest", "step-00000005"}));
  EXPECT_EQ(entries_of(folder / "step-00000005"),
            (std::vector<std::string>{"manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"}));
  expect_loads(folder / "step-00000005", 5);
}

TEST(Checkpoint, a_failure_of_one_rank_fails_all_and_leaves_the_older_checkpoint) {
  struct Case {
    std::function<void(int, std::vector<TensorSlice>&)> change;
    std::string said;
  };
  const std::vector<Case> cases = {
      {[](int rank, auto& slices) {
         if (rank == 1) slices[0].data = slices[0].data.view({-1, 1});
       },
       "is flat"},
      {[](int rank, auto& slices) {
         if (rank == 1) slices[0].data = at::zeros({0}, at::kComplexDouble);
       },
       "no type for ComplexDouble"},
      {[](int rank, auto& slices) {
         if (rank == 1) slices.erase(slices.begin());
       },
       "without gap or overlap"},
      {[](int rank, auto& slices) {
         if (rank == 1) slices[0].begin -= 1;
       },
       "without gap or overlap"},
      {[](int rank, auto& slices) {
         if (rank == 1) slices[0].begin += 1;
       },
       "without gap or overlap"},
      {[](int rank, auto& slices) {
         if (rank == 1) slices[0].shape = {120};
       },
       "ranks agree"},
      {[](int rank, auto& slices) {
         if (rank == 1) slices[0].data = slices[0].data.to(at::kDouble);
       },
       "ranks agree"},
  };
  for (const Case& each : cases) {
    const TestFolder folder;
    ASSERT_EQ(save(folder.path(), 1, {3}), no_failures(3));
    EXPECT_THAT(save(folder.path(), 2, {3}, each.change), Each(HasSubstr(each.said)));
    EXPECT_EQ(entries_of(folder.path()), (std::vector<std::string>{"latest", "step-00000001"}));
    EXPECT_EQ(newest_checkpoint(folder.path()), folder / "step-00000001");
    ASSERT_EQ(save(folder.path(), 2, {3}), no_failures(3));
    expect_loads(folder / "step-00000002", 2);
  }
}

// The limit on a file's length stands in for a full disk: in both the system refuses to give a file more space.
TEST(Checkpoint, without_space_all_ranks_fail_and_the_older_checkpoint_stays) {
  const TestFolder folder;
  ASSERT_EQ(save(folder.path(), 1, {2}), no_failures(2));
  ::rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t limit :
       {rlim_t{64}, rlim_t{2100}}) {  // too little for a shard; enough for the shards, but not for the manifest
    const ::rlimit small = {limit, before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    const std::vector<std::string> failures = save(folder.path(), 2, {2});
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_THAT(failures,
                Each(AllOf(HasSubstr("File too large"), HasSubstr(limit == 64 ? "rank-0000" : manifest_file_name))));
    EXPECT_EQ(entries_of(folder.path()), (std::vector<std::string>{"latest", "step-00000001"}));
  }
  std::signal(SIGXFSZ, old_handler);
  expect_loads(*newest_checkpoint(folder.path()), 1);
  ASSERT_EQ(save(folder.path(), 2, {2}), no_failures(2));
  expect_loads(*newest_checkpoint(folder.path()), 2);
}

TEST(Checkpoint, pruning_keeps_the_newest_whole_ones) {
  const TestFolder folder;
  for (int64_t step = 1; step <= 6; ++step) ASSERT_EQ(save(folder.path(), step, {1}), no_failures(1));
  prune_checkpoints(folder.path(), {.newest = 4});
  EXPECT_EQ(entries_of(folder.path()),
            (std::vector<std::string>{"latest", "step-00000003", "step-00000004", "step-00000005", "step-00000006"}));
  // Damaged ones do not count, and those newer than the last one kept stay to be looked at.
  std::filesystem::remove(folder / "step-00000006" / manifest_file_name);
  std::filesystem::remove(folder / "step-00000005" / manifest_file_name);
  prune_checkpoints(folder.path(), {.newest = 1});
  EXPECT_EQ(entries_of(folder.path()),
            (std::vector<std::string>{"latest", "step-00000004", "step-00000005", "step-00000006"}));
  // The one that a job would resume from stays, even when `latest` was set back to it.
  ASSERT_EQ(save(folder.path(), 7, {1}), no_failures(1));
  set_latest(folder.path(), "step-00000004");
  prune_checkpoints(folder.path(), {.newest = 1});
  EXPECT_EQ(entries_of(folder.path()), (std::vector<std::string>{"latest", "step-00000004", "step-00000007"}));
  // Nothing whole is left: nothing is removed.
  std::filesystem::remove(folder / "step-00000004" / manifest_file_name);
  std::filesystem::remove(folder / "step-00000007" / manifest_file_name);
  prune_checkpoints(folder.path(), {.newest = 1});
  EXPECT_EQ(entries_of(folder.path()).size(), 3u);
}

// Oracle: the same save without the detour. (That the inner communicator sees tensors of a device other than the CPU
// needs such a device.)
TEST(HostTensors, a_checkpoint_is_saved_through_staged_messages) {
  const TestFolder folder;
  ASSERT_EQ(run_ranks(3,
                      [&](Communicator& world) {
                        HostTensors staged(world, at::kCPU);
                        save_checkpoint(folder.path(), state_at(4), slices_of(world.rank(), 3, true), staged,
                                        small_block);
                      }),
            no_failures(3));
  expect_loads(folder / "step-00000004", 4);
}

TEST(Verdict, all_ranks_learn_of_the_lowest_rank_that_failed) {
  std::vector<std::string> kinds(4);
  const std::vector<std::string> failures = run_ranks(4, [&](Communicator& world) {
    together(world, [] {});
    try {
      together(world, [&] {
        if (world.rank() == 1) throw UserError("wrong value");
        if (world.rank() == 2) throw InvariantError("later");
      });
    } catch (const UserError&) {
      kinds[static_cast<size_t>(world.rank())] = "user";
      throw;
    }
  });
  EXPECT_EQ(failures, (std::vector<std::string>{"rank 1: wrong value", "wrong value", "rank 1: wrong value",
                                                "rank 1: wrong value"}));
  EXPECT_EQ(kinds, (std::vector<std::string>{"user", "user", "user", "user"}));  // rank 2's own was of another kind
}

}  // namespace
}  // namespace conclave
