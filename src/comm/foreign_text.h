// Something in the job's store that no rank of the job has written: a stranger reaches it, or ranks of another version.
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>

#include "base/printable.h"

namespace conclave {

class ForeignTextError : public std::runtime_error {
 public:
  // `what`: "the report of rank 1".
  ForeignTextError(const std::string& what, const std::string& text)
      : std::runtime_error(fmt::format(
            "{} in the job's store is \"{}{}\", which no rank of this job writes. Keep others away from the "
            "store's port, or give all ranks a secret (CONCLAVE_SECRET_FILE).",
            what, printable(text.substr(0, shown)), text.size() > shown ? "..." : "")) {}

 private:
  static constexpr size_t shown = 100;
};

}  // namespace conclave
