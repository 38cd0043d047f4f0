// Bodies of test/folder.h.
#include "test/folder.h"

char folder[PROGRAM_PATH];

char *in_folder(char path[PROGRAM_PATH], const char *name) { return path_join(path, folder, name); }

int make_folder(void **state) {
    (void)state;
    make_temp_folder(folder);
    if (chmod(folder, 0755) != 0) fail_msg("cannot change permissions: %s", strerror(errno));
    return 0;
}

int remove_folder(void **state) {
    (void)state;
    remove_tree(folder);
    return 0;
}
