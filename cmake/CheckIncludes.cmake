# cmake -D FOLDER=<path of src/name> -D MAY_USE="base,config" -D STAMP=<file> -P CheckIncludes.cmake
#
# Fails when a source of FOLDER includes a file of a folder that is not in MAY_USE. The compiler alone cannot tell: the headers of a folder that may
# be used need the folders that they use themselves, so those are on the include path too.
cmake_minimum_required(VERSION 3.25)
cmake_path(GET FOLDER FILENAME own)
string(REPLACE "," ";" may_use "${MAY_USE}")
file(GLOB sources ${FOLDER}/*.h ${FOLDER}/*.cpp ${FOLDER}/*.cu)

set(forbidden "")
foreach(source IN LISTS sources)
  file(STRINGS ${source} includes REGEX "^#include \"[a-z_0-9]+/")
  cmake_path(GET source FILENAME file)
  foreach(include IN LISTS includes)
    string(REGEX MATCH "^#include \"([a-z_0-9]+)/[^\"]*\"" matched "${include}")
    if(NOT CMAKE_MATCH_1 STREQUAL own AND NOT CMAKE_MATCH_1 IN_LIST may_use)
      string(APPEND forbidden "\n  src/${own}/${file}: ${matched}")
    endif()
  endforeach()
endforeach()

if(forbidden)
  string(REPLACE ";" " " allowed "${may_use}")
  message(FATAL_ERROR "These includes are not allowed. src/${own} may use: ${allowed}. Its line in CMakeLists.txt says so.${forbidden}")
endif()
file(TOUCH ${STAMP})
