/* Loading kernels: what lands where, and files that are no kernels. */
#include "vmm/boot.h"
#include "vmm/layout.h"

#include "base/cleanup.h"

#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <linux/kvm.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#define MIB 1048576ull

static struct memory new_memory(uint64_t size)
{
	struct memory memory;
	struct error error = {0};
	int fd = memfd_create("ram", MFD_CLOEXEC);

	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	assert_int_equal(memory_map(&memory, fd, size, false, &error), 0);
	return memory;
}

static int file_of(const void *data, size_t size)
{
	int fd = memfd_create("file", MFD_CLOEXEC);

	assert_int_equal(write(fd, data, size), (ssize_t)size);
	return fd;
}

/* A bzImage of 4 setup sectors and 64 KiB. */
struct image {
	uint8_t bytes[5 * 512 + 65536];
};

static struct setup_header *header_of(struct image *image)
{
	return (struct setup_header *)(void *)(image->bytes + 0x1f1);
}

static void make_image(struct image *image)
{
	struct setup_header *header = header_of(image);

	memset(image, 0, sizeof(*image));
	header->setup_sects = 4;
	header->syssize = 65536 / 16;
	header->boot_flag = 0xaa55;
	header->header = 0x53726448;
	header->jump = 0x66eb; /* over the rest of the header */
	header->version = 0x020f;
	header->xloadflags = XLF_KERNEL_64;
	header->kernel_alignment = 2 * MIB;
	header->relocatable_kernel = 1;
	header->pref_address = 16 * MIB;
	header->init_size = 4 * MIB;
	header->cmdline_size = 2047;
	header->initrd_addr_max = 0x7fffffff;
	memset(image->bytes + 5 * 512, 0xcc, 65536);
}

static int load(struct memory *memory, const struct image *image, size_t size, const char *line,
	struct boot_entry *entry, struct error *error)
{
	_cleanup_close_ int kernel = file_of(image, size);

	*error = (struct error){0};
	return boot_load(memory, kernel, -1, line, entry, error);
}

static void a_bzimage_lands_where_it_wants(void **state)
{
	struct memory memory = new_memory(64 * MIB);
	struct image image;
	_cleanup_close_ int kernel = -1, ramdisk = file_of("ramdisk!", 8);
	const struct boot_params *params = memory_at(&memory, LAYOUT_BOOT_PARAMS, sizeof(*params));
	struct boot_entry entry;
	struct kvm_regs regs = {0};
	struct kvm_sregs sregs = {0};
	struct error error = {0};

	(void)state;
	make_image(&image);
	kernel = file_of(&image, sizeof(image));
	assert_int_equal(boot_load(&memory, kernel, ramdisk, "root=/dev/vda ro", &entry, &error), 0);
	assert_int_equal(entry.rip, 16 * MIB + 0x200);
	assert_memory_equal(memory.base + 16 * MIB, image.bytes + 5 * 512, 65536);
	assert_string_equal((const char *)memory.base + LAYOUT_COMMAND_LINE, "root=/dev/vda ro");
	assert_int_equal(params->hdr.cmd_line_ptr, LAYOUT_COMMAND_LINE);
	assert_int_equal(params->hdr.ramdisk_size, 8);
	assert_int_equal(params->hdr.ramdisk_image, 64 * MIB - 4096);
	assert_memory_equal(memory.base + params->hdr.ramdisk_image, "ramdisk!", 8);
	assert_int_equal(params->e820_entries, 3);
	assert_int_equal(params->e820_table[2].addr, MIB);
	assert_int_equal(params->e820_table[2].size, 63 * MIB);
	boot_registers(&entry, &regs, &sregs);
	assert_int_equal(regs.rsi, LAYOUT_BOOT_PARAMS);
	assert_true(sregs.efer & 0x400);
	memory_unmap(&memory);
}

static void memory_above_the_hole_is_told(void **state)
{
	struct memory memory = new_memory(4096 * MIB);
	const struct boot_params *params = memory_at(&memory, LAYOUT_BOOT_PARAMS, sizeof(*params));
	struct boot_entry entry;
	struct image image;
	struct error error;

	(void)state;
	make_image(&image);
	assert_int_equal(load(&memory, &image, sizeof(image), "", &entry, &error), 0);
	assert_int_equal(params->e820_entries, 4);
	assert_int_equal(params->e820_table[3].addr, 4096 * MIB);
	assert_int_equal(params->e820_table[3].size, 1024 * MIB);
	memory_unmap(&memory);
}

static void a_relocatable_kernel_goes_lower(void **state)
{
	struct memory memory = new_memory(16 * MIB);
	struct boot_entry entry;
	struct image image;
	struct error error;

	(void)state;
	make_image(&image);
	assert_int_equal(load(&memory, &image, sizeof(image), "", &entry, &error), 0);
	assert_int_equal(entry.rip, 2 * MIB + 0x200);
	header_of(&image)->init_size = 15 * MIB;
	assert_int_equal(load(&memory, &image, sizeof(image), "", &entry, &error), -ENOMEM);
	assert_non_null(strstr(error.text, "needs 17 MiB"));
	header_of(&image)->init_size = 4 * MIB;
	header_of(&image)->relocatable_kernel = 0;
	assert_int_equal(load(&memory, &image, sizeof(image), "", &entry, &error), -ENOMEM);
	memory_unmap(&memory);
}

static void a_long_command_line_is_refused(void **state)
{
	struct memory memory = new_memory(64 * MIB);
	struct boot_entry entry;
	struct image image;
	struct error error;
	char line[6000];

	(void)state;
	memset(line, 'x', sizeof(line));
	line[2047] = '\0';
	make_image(&image);
	assert_int_equal(load(&memory, &image, sizeof(image), line, &entry, &error), 0);
	line[2047] = 'x';
	line[2048] = '\0';
	assert_int_equal(load(&memory, &image, sizeof(image), line, &entry, &error), -EINVAL);
	assert_non_null(strstr(error.text, "2047"));
	header_of(&image)->cmdline_size = 0xffffffff;
	line[2048] = 'x';
	line[5999] = '\0';
	assert_int_equal(load(&memory, &image, sizeof(image), line, &entry, &error), -EINVAL);
	memory_unmap(&memory);
}

static void a_large_ramdisk_is_refused(void **state)
{
	struct memory memory = new_memory(64 * MIB);
	_cleanup_close_ int kernel = -1, ramdisk = memfd_create("ramdisk", MFD_CLOEXEC);
	struct boot_entry entry;
	struct image image;
	struct error error = {0};

	(void)state;
	make_image(&image);
	kernel = file_of(&image, sizeof(image));
	assert_int_equal(ftruncate(ramdisk, 44 * MIB), 0);
	assert_int_equal(boot_load(&memory, kernel, ramdisk, "", &entry, &error), 0);
	assert_int_equal(ftruncate(ramdisk, 44 * MIB + 1), 0);
	assert_int_equal(boot_load(&memory, kernel, ramdisk, "", &entry, &error), -ENOMEM);
	assert_non_null(
		strstr(error.text, "ramdisk of 45 MiB is too large for the guest's memory of 64 MiB"));
	memory_unmap(&memory);
}

static void refused(struct memory *memory, const void *data, size_t size, const char *sentence)
{
	_cleanup_close_ int kernel = file_of(data, size);
	struct boot_entry entry;
	struct error error = {0};

	assert_true(boot_load(memory, kernel, -1, "", &entry, &error) < 0);
	if (!strstr(error.text, sentence))
		fail_msg("expected \"%s\" in \"%s\"", sentence, error.text);
}

static void what_is_no_kernel_is_said(void **state)
{
	struct memory memory = new_memory(64 * MIB);
	struct image image;
	char text[2000] = "#!/bin/sh\n";

	(void)state;
	refused(&memory, "", 0, "neither a Linux bzImage nor an ELF file");
	refused(&memory, text, sizeof(text), "neither a Linux bzImage nor an ELF file");
	make_image(&image);
	refused(&memory, &image, 3000, "cut short");
	refused(&memory, &image, 1024, "cut short");
	header_of(&image)->syssize = 65536 / 16 + 1;
	refused(&memory, &image, sizeof(image), "cut short");
	make_image(&image);
	header_of(&image)->xloadflags = 0;
	refused(&memory, &image, sizeof(image), "64-bit");
	make_image(&image);
	header_of(&image)->version = 0x0204;
	refused(&memory, &image, sizeof(image), "2.04");
	make_image(&image);
	header_of(&image)->kernel_alignment = 3;
	refused(&memory, &image, sizeof(image), "damaged");
	make_image(&image);
	header_of(&image)->pref_address = UINT64_MAX;
	header_of(&image)->relocatable_kernel = 0;
	refused(&memory, &image, sizeof(image), "needs");
	memory_unmap(&memory);
}

/* An ELF file with one segment and a PVH note. */
struct program {
	Elf64_Ehdr head;
	Elf64_Phdr segments[2];
	struct {
		Elf64_Nhdr head;
		char name[4];
		uint32_t entry;
	} note;
	uint8_t code[64];
};

static void make_program(struct program *program)
{
	*program = (struct program){
		.head = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
			.e_type = ET_EXEC,
			.e_machine = EM_X86_64,
			.e_phoff = offsetof(struct program, segments),
			.e_phentsize = sizeof(Elf64_Phdr),
			.e_phnum = 2},
		.segments = {{.p_type = PT_LOAD,
				     .p_offset = offsetof(struct program, code),
				     .p_paddr = 16 * MIB,
				     .p_filesz = 64,
				     .p_memsz = 8192},
			{.p_type = PT_NOTE,
				.p_offset = offsetof(struct program, note),
				.p_filesz = sizeof(program->note)}},
		.note = {.head = {.n_namesz = 4, .n_descsz = 4, .n_type = 18},
			.name = "Xen",
			.entry = 16 * MIB}};
	memset(program->code, 0x90, sizeof(program->code));
}

static void a_pvh_kernel_gets_its_start_info(void **state)
{
	struct memory memory = new_memory(64 * MIB);
	struct {
		struct program program;
		uint8_t rest[1024];
	} file = {0};
	_cleanup_close_ int kernel = -1, ramdisk = file_of("ramdisk!", 8);
	struct boot_entry entry;
	struct kvm_regs regs = {0};
	struct kvm_sregs sregs = {0};
	struct error error = {0};
	const uint32_t *info = memory_at(&memory, LAYOUT_START_INFO, 64);

	(void)state;
	make_program(&file.program);
	kernel = file_of(&file, sizeof(file));
	memory.base[16 * MIB + 100] = 1; /* is zeroed: beyond the file's part */
	assert_int_equal(boot_load(&memory, kernel, ramdisk, "x", &entry, &error), 0);
	assert_int_equal(entry.rip, 16 * MIB);
	assert_int_equal(memory.base[16 * MIB + 63], 0x90);
	assert_int_equal(memory.base[16 * MIB + 100], 0);
	assert_int_equal(info[0], 0x336ec578);
	assert_int_equal(info[3], 1);
	boot_registers(&entry, &regs, &sregs);
	assert_int_equal(regs.rbx, LAYOUT_START_INFO);
	assert_int_equal(sregs.cr0, 0x11);
	assert_int_equal(sregs.efer, 0);
	memory_unmap(&memory);
}

static void hostile_programs_are_refused(void **state)
{
	struct memory memory = new_memory(64 * MIB);
	struct {
		struct program program;
		uint8_t rest[1024];
	} file = {0};
	struct program *program = &file.program;

	(void)state;
	make_program(program);
	program->note.head.n_type = 1;
	refused(&memory, &file, sizeof(file), "without a PVH entry");
	make_program(program);
	program->note.head.n_descsz = 0xffffffff;
	refused(&memory, &file, sizeof(file), "without a PVH entry");
	make_program(program);
	program->note.entry = 0x1000;
	refused(&memory, &file, sizeof(file), "without a PVH entry");
	make_program(program);
	program->segments[0].p_paddr = 0x7000; /* over what we write ourselves */
	refused(&memory, &file, sizeof(file), "damaged");
	make_program(program);
	program->segments[0].p_memsz = UINT64_MAX;
	refused(&memory, &file, sizeof(file), "needs");
	make_program(program);
	program->segments[0].p_filesz = program->segments[0].p_memsz = 1 << 20;
	refused(&memory, &file, sizeof(file), "cut short");
	make_program(program);
	program->head.e_phoff = UINT64_MAX;
	refused(&memory, &file, sizeof(file), "Unable to read the kernel");
	make_program(program);
	program->head.e_phnum = 65535;
	refused(&memory, &file, sizeof(file), "not a 64-bit x86 program");
	make_program(program);
	program->segments[1].p_filesz = 1ull << 40;
	refused(&memory, &file, sizeof(file), "damaged");
	memory_unmap(&memory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_bzimage_lands_where_it_wants),
		cmocka_unit_test(memory_above_the_hole_is_told),
		cmocka_unit_test(a_relocatable_kernel_goes_lower),
		cmocka_unit_test(a_long_command_line_is_refused),
		cmocka_unit_test(a_large_ramdisk_is_refused),
		cmocka_unit_test(what_is_no_kernel_is_said),
		cmocka_unit_test(a_pvh_kernel_gets_its_start_info),
		cmocka_unit_test(hostile_programs_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
