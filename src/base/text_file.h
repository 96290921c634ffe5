// Small files of text from anywhere, read whole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace conclave {

// UserError naming the file and the reason: it cannot be opened or read, it is no regular file (a folder, a pipe or a
// device, none of which is waited for), or it is longer than `most_bytes`.
std::string read_text_file(const std::filesystem::path& path, uint64_t most_bytes);

// Whether `path` leads to a folder. What cannot be looked at (a name that is too long, links that lead in a circle, a
// folder that may not be entered) is none; opening it says why.
bool is_folder(const std::filesystem::path& path);
// Whether anything has that name, a dangling link too, so that it is opened and not passed over.
bool has_name(const std::filesystem::path& path);

}  // namespace conclave
