// Any bytes as an .idx file, beside a .bin file of any length (the input's first two bytes): refused as a user's
// mistake, or a set whose every document and token can be read. Oracle: under AddressSanitizer no read leaves the
// mappings; the documents follow one another from the first token to the last.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"
#include "data/indexed_tokens.h"

namespace {

// In memory, if the machine lets us. Never destroyed: it is used when the program ends.
const std::string& prefix() {
  static const std::string& path = *new std::string((::access("/dev/shm", W_OK) == 0 ? "/dev/shm/" : "/tmp/") +
                                                    std::string("fuzz-tokens-") + std::to_string(::getpid()));
  return path;
}

void write_file(const std::string& path, const uint8_t* data, size_t size, size_t length) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (file < 0 || ::write(file, data, size) != static_cast<ssize_t>(size) ||
      ::ftruncate(file, static_cast<off_t>(length)) != 0)
    std::abort();
  ::close(file);
}

void remove_files() {
  ::unlink((prefix() + ".idx").c_str());
  ::unlink((prefix() + ".bin").c_str());
}

void read_all(const conclave::IndexedTokens& set) {
  int64_t next = 0;
  for (int64_t document = 0; document < set.documents(); ++document) {
    const int64_t begin = set.first_token_of_document(document);
    if (begin != next) std::abort();
    next = document + 1 < set.documents() ? set.first_token_of_document(document + 1) : set.tokens();
    if (next < begin) std::abort();
    if (begin < next && set.document_of_token(begin) > document) std::abort();
  }
  std::vector<int64_t> tokens(static_cast<size_t>(set.tokens()));
  set.read(0, tokens);
  set.check_vocabulary(1 << 30);
  set.highest_token();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  static const bool once = std::atexit(remove_files) == 0;
  (void)once;
  write_file(prefix() + ".idx", data + 2, size - 2, size - 2);
  write_file(prefix() + ".bin", data, std::min<size_t>(size, 64), data[0] | data[1] << 8);
  try {
    read_all(conclave::IndexedTokens(prefix()));
  } catch (const conclave::UserError&) {
  }
  return 0;
}
