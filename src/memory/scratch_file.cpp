#include "memory/scratch_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace conclave {
namespace {

std::string in_mebibytes(double bytes) {
  return fmt::format("{:.1f} MiB", bytes / (1 << 20));
}

// A file without a name, open for reading and writing.
int open_scratch_file(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  std::string name = (folder / ".offload-XXXXXX").string();
  const int file = error ? -1 : ::mkostemp(name.data(), O_CLOEXEC);
  if (file < 0)
    user_error(
        "offloaded activations cannot be written to {}: {}. Give a folder that can be written by "
        "memory.offload_folder, or set memory.activation_offloading to false.",
        folder.string(), error ? error.message() : std::strerror(errno));
  ::unlink(name.c_str());
  return file;
}

// Reserves space for `bytes` in the file. A disk that is known to lack it is not filled up first.
void reserve_space(int file, const std::filesystem::path& folder, int64_t bytes) {
  struct statvfs disk {};
  if (::fstatvfs(file, &disk) != 0) disk = {};
  const double free_bytes = static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
  const bool too_small = disk.f_frsize > 0 && free_bytes < static_cast<double>(bytes);
  const int reason = too_small ? ENOSPC : ::posix_fallocate(file, 0, bytes);
  if (reason == 0) return;
  throw std::runtime_error(fmt::format(
      "offloaded activations need {} of scratch space for this rank in {}, where {} are free: {}. Free space there, "
      "name "
      "another folder by memory.offload_folder, or set memory.activation_offloading to false.",
      in_mebibytes(static_cast<double>(bytes)), folder.string(), in_mebibytes(free_bytes), std::strerror(reason)));
}

// An open file, closed at the end of its scope.
struct OpenFile {
  int descriptor;
  ~OpenFile() { ::close(descriptor); }
};

// What runs in the background, as a Copy: waiting again is harmless.
OffloadMedium::Copy copy_of(std::future<void> done) {
  return [done = done.share()] { done.get(); };
}

}  // namespace

ScratchFile::~ScratchFile() {
  unmap();
}

void ScratchFile::unmap() {
  if (mapped_ == nullptr) return;
  thread_.run([] {}).wait();  // no copy touches the mapping any more
  ::munmap(mapped_, static_cast<size_t>(slots_ * slot_bytes_));
  mapped_ = nullptr;
}

void ScratchFile::reserve(int64_t slots, int64_t bytes) {
  unmap();
  const int64_t page = ::sysconf(_SC_PAGESIZE);
  slots_ = slots;
  slot_bytes_ = (bytes + page - 1) / page * page;
  const int64_t total = slots_ * slot_bytes_;
  if (total == 0) return;
  const OpenFile file{open_scratch_file(folder_)};  // the mapping keeps it
  reserve_space(file.descriptor, folder_, total);
  void* mapped = ::mmap(nullptr, static_cast<size_t>(total), PROT_READ | PROT_WRITE, MAP_SHARED, file.descriptor, 0);
  if (mapped == MAP_FAILED)
    throw std::runtime_error(fmt::format("a scratch file of {} in {} cannot be mapped: {}",
                                         in_mebibytes(static_cast<double>(total)), folder_.string(),
                                         std::strerror(errno)));
  mapped_ = static_cast<char*>(mapped);
}

char* ScratchFile::slot_begin(int64_t slot, const at::Tensor& tensor) const {
  const auto bytes = static_cast<int64_t>(tensor.nbytes());
  check_invariant(slot >= 0 && slot < slots_ && bytes <= slot_bytes_, "{} bytes go to slot {} of {} slots of {} bytes",
                  bytes, slot, slots_, slot_bytes_);
  check_invariant(tensor.is_cpu() && tensor.is_contiguous(), "a scratch file holds contiguous CPU tensors");
  return mapped_ + slot * slot_bytes_;
}

OffloadMedium::Copy ScratchFile::write(int64_t slot, at::Tensor tensor) {
  if (tensor.numel() == 0) return [] {};
  char* to = slot_begin(slot, tensor);
  return copy_of(thread_.run([to, bytes = slot_bytes_, tensor = std::move(tensor)]() mutable {
    std::memcpy(to, tensor.const_data_ptr(), tensor.nbytes());
    tensor.reset();
    ::madvise(to, static_cast<size_t>(bytes), MADV_DONTNEED);  // the file keeps what this process gives back
  }));
}

OffloadMedium::Copy ScratchFile::read(int64_t slot, at::Tensor tensor) {
  if (tensor.numel() == 0) return [] {};
  char* from = slot_begin(slot, tensor);
  return copy_of(thread_.run([from, bytes = slot_bytes_, tensor = std::move(tensor)]() mutable {
    std::memcpy(tensor.data_ptr(), from, tensor.nbytes());
    tensor.reset();
    ::madvise(from, static_cast<size_t>(bytes), MADV_DONTNEED);
  }));
}

}  // namespace conclave
