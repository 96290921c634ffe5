#include "data/mapped_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "base/error.h"
#include "base/shown_path.h"

namespace conclave {

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const auto fail = [&](int reason, int descriptor) {
    if (descriptor >= 0) ::close(descriptor);
    throw std::system_error(reason, std::generic_category(), fmt::format("cannot read {}", shown_path(path)));
  };
  // A fifo without a writer is opened at once, and refused below.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) fail(errno, descriptor);
  struct stat status = {};
  if (::fstat(descriptor, &status) != 0) fail(errno, descriptor);
  if (S_ISDIR(status.st_mode)) fail(EISDIR, descriptor);
  if (!S_ISREG(status.st_mode)) {  // a pipe, a device: neither can be mapped
    ::close(descriptor);
    user_error("cannot read {}: it is not a regular file.", shown_path(path));
  }
  size_ = static_cast<size_t>(status.st_size);
  if (size_ > 0) {  // mmap refuses to map nothing
    void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
    if (address == MAP_FAILED) fail(errno, descriptor);
    begin_ = static_cast<const std::byte*>(address);
  }
  ::close(descriptor);
}

MappedFile::~MappedFile() {
  if (size_ > 0) ::munmap(const_cast<std::byte*>(begin_), size_);
}

}  // namespace conclave
