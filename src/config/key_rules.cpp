#include "config/key_rules.h"

namespace conclave {

void KeyRules::refuse_if(bool broken, const std::vector<const char*>& keys, const std::string& problem,
                         const std::string& remedy) {
  if (!broken || !know(keys)) return;
  std::string place;
  for (const char* key : keys)
    if (place.empty()) place = place_of(key);
  mistakes.push_back(mistake(problem, remedy, place));
}

}  // namespace conclave
