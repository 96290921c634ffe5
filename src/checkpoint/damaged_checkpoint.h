// A checkpoint that is not what was saved: a file is missing, cut short or altered. Another one may still be whole.
#pragma once

#include <fmt/core.h>

#include "base/error.h"

namespace conclave {

class DamagedCheckpoint : public UserError {
 public:
  using UserError::UserError;
};

template <class... Args>
[[noreturn]] void damaged(fmt::format_string<Args...> format, Args&&... args) {
  throw DamagedCheckpoint(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace conclave
