# conclave_protobuf(<target> <file.proto>): a static library of the messages of one .proto file, and its header as "<file>.pb.h".
#
# The lite runtime of the system's libprotobuf. The torch wheel holds a protobuf of its own inside libtorch_cpu.so, of another version; it is built
# with hidden visibility (its runtime's symbols are not exported), so the two do not see each other.
find_package(Protobuf REQUIRED)

# The wheel ships its protobuf's headers too: as with fmt, the system's go first.
find_path(SYSTEM_PROTOBUF_INCLUDE google/protobuf/message_lite.h REQUIRED)
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/include/system_protobuf)
file(CREATE_LINK ${SYSTEM_PROTOBUF_INCLUDE}/google ${CMAKE_BINARY_DIR}/include/system_protobuf/google SYMBOLIC)
target_include_directories(torch_cpu SYSTEM BEFORE INTERFACE ${CMAKE_BINARY_DIR}/include/system_protobuf)

function(conclave_protobuf target file)
  cmake_path(ABSOLUTE_PATH file BASE_DIRECTORY ${CMAKE_SOURCE_DIR} OUTPUT_VARIABLE source)
  cmake_path(GET source PARENT_PATH folder)
  cmake_path(GET source STEM stem)
  set(generated ${CMAKE_BINARY_DIR}/generated/${target})
  file(MAKE_DIRECTORY ${generated})
  add_custom_command(
    OUTPUT ${generated}/${stem}.pb.cc ${generated}/${stem}.pb.h
    COMMAND protobuf::protoc --proto_path=${folder} --cpp_out=${generated} ${source}
    DEPENDS ${source}
    VERBATIM)
  # Generated code is held to no warnings of ours.
  add_library(${target} STATIC ${generated}/${stem}.pb.cc)
  target_include_directories(${target} SYSTEM PUBLIC ${generated})
  target_link_libraries(${target} PUBLIC protobuf::libprotobuf-lite)
endfunction()
