"""All doors of the fuzz driver. Files of further doors are imported here and added to the list."""

import fuzz_files
import fuzz_pictures
import fuzz_servers
import fuzz_texts

DOORS = [*fuzz_pictures.DOORS, *fuzz_texts.DOORS, *fuzz_files.DOORS, *fuzz_servers.DOORS]
