// What torchrun prints of a rank that has ended: its own report names a "root cause", for which it looks into the file
// that TORCHELASTIC_ERROR_FILE names. Without that file it says how Python programs get a traceback.
#pragma once

#include <string>

namespace conclave {

// Leaves `text` there, where torchrun has started this process. A file that cannot be written is not worth a word.
void leave_word_for_torchrun(const std::string& text);

}  // namespace conclave
