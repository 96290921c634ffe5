// A finished folder takes the place of an older one.
#pragma once

#include <filesystem>

namespace conclave {

// Renames the finished folder `from` to `to`, in the same parent, and removes what `to` was before, if anything. Where
// the file system can exchange names, `to` exists at every moment; elsewhere a crash between two renames leaves the old
// folder beside it as `.tmp-old-<name>`. std::system_error on failure, with the old folder in place.
void replace_folder(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace conclave
