// The keys of a config.json that mean nothing to this version, on purpose: the one list of them. A key that is neither
// read (decoder_keys.cpp, the families), nor refused (unsupported_keys.cpp), nor listed here gives a warning when a job
// starts, so that a misspelt one is noticed.
#pragma once

#include <string_view>

namespace conclave {

bool is_ignored_on_purpose(std::string_view key);

}  // namespace conclave
