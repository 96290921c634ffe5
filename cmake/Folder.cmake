set(CONCLAVE_CHECK_INCLUDES ${CMAKE_CURRENT_LIST_DIR}/CheckIncludes.cmake)

# conclave_folder(<name> [TORCH] USES <targets> [PRIVATE <targets>]): the static library of src/<name>.
#
# Sources include each other as "<folder>/<file>.h". Each target offers an include directory that holds its own folder and nothing else. A source may
# include only its own folder and those that its line names in USES; anything else fails the build (CheckIncludes.cmake).
# TORCH: the folder works with tensors and shares one precompiled header of ATen (11 s a translation unit without it, about 3 s with it).
function(conclave_folder name)
  cmake_parse_arguments(ARG "TORCH" "" "USES;PRIVATE" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/*.cpp)
  if(NOT sources)
    return()
  endif()
  set(window ${CMAKE_BINARY_DIR}/include/${name})
  file(MAKE_DIRECTORY ${window})
  file(CREATE_LINK ${CMAKE_SOURCE_DIR}/src/${name} ${window}/${name} SYMBOLIC)

  add_library(conclave_${name} STATIC ${sources})
  target_include_directories(conclave_${name} PUBLIC ${window})
  conclave_compile_options(conclave_${name})
  foreach(used IN LISTS ARG_USES)
    conclave_resolve(${used} resolved)
    target_link_libraries(conclave_${name} PUBLIC ${resolved})
  endforeach()
  foreach(used IN LISTS ARG_PRIVATE)
    target_link_libraries(conclave_${name} PRIVATE ${used})
  endforeach()
  if(ARG_TORCH)
    conclave_use_precompiled_header(conclave_${name})
  endif()
  conclave_check_includes(conclave_${name} ${CMAKE_SOURCE_DIR}/src/${name} ${ARG_USES})
endfunction()

# conclave_check_includes(<target> <folder> <names>...): building the target fails when a source of the folder includes a file of a folder that is
# not among the names.
function(conclave_check_includes target folder)
  cmake_path(GET folder FILENAME name)
  set(stamp ${CMAKE_BINARY_DIR}/include/${name}.checked)
  file(GLOB sources CONFIGURE_DEPENDS ${folder}/*.h ${folder}/*.cpp ${folder}/*.cu)
  list(JOIN ARGN "," may_use)
  add_custom_command(
    OUTPUT ${stamp}
    COMMAND ${CMAKE_COMMAND} -D FOLDER=${folder} -D MAY_USE=${may_use} -D STAMP=${stamp} -P ${CONCLAVE_CHECK_INCLUDES}
    DEPENDS ${sources} ${CONCLAVE_CHECK_INCLUDES}
    COMMENT "Checking the includes of ${name}"
    VERBATIM)
  add_custom_target(${target}_includes DEPENDS ${stamp})
  add_dependencies(${target} ${target}_includes)
endfunction()

# A folder's name, or a library's own target name. A folder that has no source yet resolves to nothing.
function(conclave_resolve name out)
  if(IS_DIRECTORY ${CMAKE_SOURCE_DIR}/src/${name})
    if(TARGET conclave_${name})
      set(${out} conclave_${name} PARENT_SCOPE)
    else()
      set(${out} "" PARENT_SCOPE)
    endif()
  else()
    set(${out} ${name} PARENT_SCOPE)
  endif()
endfunction()

function(conclave_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Werror -Wno-unused-parameter)
  if(CONCLAVE_SANITIZE)
    # GCC 12 sees overflows in its own string code once that is instrumented: warnings are errors in the other builds.
    target_compile_options(${target} PRIVATE -fsanitize=${CONCLAVE_SANITIZE} -fno-omit-frame-pointer -Wno-error)
    target_link_options(${target} PUBLIC -fsanitize=${CONCLAVE_SANITIZE})
  endif()
endfunction()

function(conclave_use_precompiled_header target)
  if(NOT TARGET conclave_precompiled)
    set(source ${CMAKE_BINARY_DIR}/precompiled.cpp)
    file(WRITE ${source} "// Carrier of the precompiled header.\n")
    add_library(conclave_precompiled OBJECT ${source})
    target_link_libraries(conclave_precompiled PUBLIC torch_cpu fmt::fmt spdlog::spdlog Threads::Threads)
    conclave_compile_options(conclave_precompiled)
    target_precompile_headers(conclave_precompiled PRIVATE <algorithm> <cstdint> <functional> <memory> <optional> <span> <string> <vector>
                              <fmt/core.h> <ATen/ATen.h>)
  endif()
  target_link_libraries(${target} PUBLIC torch_cpu fmt::fmt spdlog::spdlog Threads::Threads)
  target_precompile_headers(${target} REUSE_FROM conclave_precompiled)
  # A program's sources are compiled as the header was (-fPIC, after CMake's own -fPIE), or the header cannot be used.
  target_compile_options(${target} PRIVATE -fPIC)
endfunction()
