#include "vmm/boot.h"
#include "base/cleanup.h"
#include "base/status.h"
#include "vmm/layout.h"

#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <string.h>

#define MIB 1048576ull
#define SETUP_HEADER 0x1f1u /* offset in the file and in struct boot_params */
#define BOOT_FLAG 0xaa55u
#define HEADER_MAGIC 0x53726448u /* "HdrS" */
#define PROTOCOL_LEAST 0x020cu   /* 2.12: xloadflags */
#define ENTRY_64 0x200u          /* of the protected-mode kernel */
#define LOADER_OTHER 0xff
#define SYSSIZE_UNIT 16ull
#define E820_RAM 1u
#define E820_RESERVED 2u
#define NOTE_PVH 18u /* XEN_ELFNOTE_PHYS32_ENTRY */
#define SEGMENTS_MAX 64u
#define NOTES_MAX (1u << 20)

/* Xen public/arch-x86/hvm/start_info.h */
#define START_MAGIC 0x336ec578u
struct start_info {
	uint32_t magic, version, flags, module_count;
	uint64_t modules, command_line, rsdp, memory_map;
	uint32_t memory_map_count, reserved;
};
struct start_module {
	uint64_t address, size, command_line, reserved;
};
struct start_range {
	uint64_t address, size;
	uint32_t type, reserved;
};

/* The page at LAYOUT_START_INFO. */
struct start_page {
	struct start_info info;
	struct start_module ramdisk;
	struct start_range map[8];
};

struct file {
	int fd;
	uint64_t size;
	const char *what; /* "kernel" or "ramdisk", for sentences */
};

static int open_file(struct file *file, int fd, const char *what, struct error *error)
{
	struct stat status;

	if (status_of(fd, &status) < 0)
		return error_set(error, errno, "Unable to look at the %s: %s.", what, strerror(errno));
	if (!S_ISREG(status.st_mode))
		return error_set(error, EINVAL, "The %s is not a regular file.", what);
	*file = (struct file){.fd = fd, .size = (uint64_t)status.st_size, .what = what};
	return 0;
}

static int read_at(const struct file *file, uint64_t offset, void *to, uint64_t size, struct error *error)
{
	uint8_t *at = to;

	while (size) {
		ssize_t got = pread(file->fd, at, size, (off_t)offset);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return error_set(
				error, errno, "Unable to read the %s: %s.", file->what, strerror(errno));
		if (got == 0)
			return error_set(error, EINVAL, "The %s is cut short: it ends at %llu bytes.",
				file->what, (unsigned long long)offset);
		at += got;
		offset += (uint64_t)got;
		size -= (uint64_t)got;
	}
	return 0;
}

/* Reads a part of the file into guest memory. The range must be RAM in the first region. */
static int load_at(struct memory *memory, const struct file *file, uint64_t offset, uint64_t gpa,
	uint64_t size, struct error *error)
{
	void *to = memory_at(memory, gpa, size);

	if (!to)
		return error_set(error, ENOMEM, "The %s does not fit into the guest's memory of %llu MiB.",
			file->what, (unsigned long long)(memory->size / MIB));
	return read_at(file, offset, to, size, error);
}

static uint64_t low_end(const struct memory *memory)
{
	return memory->regions[0].size;
}

/* What the guest's memory is, in the form of both protocols. Returns the number of ranges. */
static unsigned list_memory(const struct memory *memory, struct start_range map[8])
{
	unsigned count = 0;

	map[count++] = (struct start_range){0, LAYOUT_LOW_END, E820_RAM, 0};
	map[count++] = (struct start_range){LAYOUT_LOW_END, LAYOUT_HIGH - LAYOUT_LOW_END, E820_RESERVED, 0};
	map[count++] = (struct start_range){LAYOUT_HIGH, low_end(memory) - LAYOUT_HIGH, E820_RAM, 0};
	for (unsigned i = 1; i < memory->region_count; i++)
		map[count++] =
			(struct start_range){memory->regions[i].gpa, memory->regions[i].size, E820_RAM, 0};
	return count;
}

/* Puts the ramdisk as high as it may be, above `above`, so that a kernel that unpacks itself does not meet
 * it. */
static int load_ramdisk(struct memory *memory, int fd, uint64_t above, uint64_t highest,
	struct start_module *place, struct error *error)
{
	uint64_t top = low_end(memory) < highest ? low_end(memory) : highest;
	struct file file = {0};
	int r;

	*place = (struct start_module){0};
	if (fd < 0)
		return 0;
	r = open_file(&file, fd, "ramdisk", error);
	if (r < 0 || file.size == 0)
		return r;
	above = ALIGN_UP(above, GUEST_PAGE_SIZE);
	if (above >= top || file.size > top - above)
		return error_set(error, ENOMEM,
			"The ramdisk of %llu MiB is too large for the guest's memory of %llu MiB: "
			"beside the kernel, %llu MiB are free for it. Give the guest more memory.",
			(unsigned long long)(ALIGN_UP(file.size, MIB) / MIB),
			(unsigned long long)(memory->size / MIB),
			(unsigned long long)(above < top ? (top - above) / MIB : 0));
	*place = (struct start_module){
		.address = (top - file.size) / GUEST_PAGE_SIZE * GUEST_PAGE_SIZE, .size = file.size};
	return load_at(memory, &file, 0, place->address, file.size, error);
}

static int load_command_line(struct memory *memory, const char *text, uint64_t most, struct error *error)
{
	size_t size = strlen(text) + 1;

	if (most > LAYOUT_COMMAND_LINE_MAX - 1)
		most = LAYOUT_COMMAND_LINE_MAX - 1;
	if (size - 1 > most)
		return error_set(error, EINVAL,
			"The kernel's command line has %zu characters, this kernel takes at most %llu.",
			size - 1, (unsigned long long)most);
	return memory_write(memory, LAYOUT_COMMAND_LINE, text, size) < 0
		       ? error_set(error, ENOMEM,
				 "The kernel's command line does not fit into the guest's memory.")
		       : 0;
}

static int too_small(const struct memory *memory, uint64_t needed, struct error *error)
{
	return error_set(error, ENOMEM,
		"The kernel needs %llu MiB to start, and the guest has %llu MiB of memory. Give it more.",
		(unsigned long long)(ALIGN_UP(needed, MIB) / MIB), (unsigned long long)(memory->size / MIB));
}

/* Four page directories of 2 MiB pages, under one table each of the upper levels (Intel SDM volume 3, 4.5).
 */
static void write_page_tables(struct memory *memory)
{
	uint64_t *tables = memory_at(memory, LAYOUT_PAGE_TABLES, 6 * (uint64_t)GUEST_PAGE_SIZE);
	const size_t entries = GUEST_PAGE_SIZE / sizeof(*tables);

	memset(tables, 0, 6 * (size_t)GUEST_PAGE_SIZE);
	tables[0] = (LAYOUT_PAGE_TABLES + GUEST_PAGE_SIZE) | 3; /* present, writable */
	for (uint64_t i = 0; i < 4; i++)
		tables[entries + i] = (LAYOUT_PAGE_TABLES + (2 + i) * GUEST_PAGE_SIZE) | 3;
	for (uint64_t i = 0; i < 4 * entries; i++)
		tables[2 * entries + i] = i << 21 | 0x83; /* and large */
}

/* Flat segments at the selectors that both protocols name: 0x10 code, 0x18 data, 0x20 task (boot.rst, "64-bit
 * boot"). */
static void write_gdt(struct memory *memory, enum boot_mode mode)
{
	const uint64_t gdt[5] = {0, 0, mode == BOOT_64BIT ? 0x00af9b000000ffffull : 0x00cf9b000000ffffull,
		0x00cf93000000ffffull, 0x00008b0000000067ull};

	memcpy(memory_at(memory, LAYOUT_GDT, sizeof(gdt)), gdt, sizeof(gdt));
}

static void write_boot_params(
	struct memory *memory, const struct setup_header *header, const struct start_module *ramdisk)
{
	struct boot_params *params = memory_at(memory, LAYOUT_BOOT_PARAMS, sizeof(*params));
	struct start_range map[8];
	unsigned count = list_memory(memory, map);

	memset(params, 0, sizeof(*params));
	params->hdr = *header;
	params->hdr.type_of_loader = LOADER_OTHER;
	params->hdr.cmd_line_ptr = (uint32_t)LAYOUT_COMMAND_LINE;
	params->hdr.ramdisk_image = (uint32_t)ramdisk->address;
	params->hdr.ramdisk_size = (uint32_t)ramdisk->size;
	params->acpi_rsdp_addr = LAYOUT_ACPI;
	params->e820_entries = (uint8_t)count;
	for (unsigned i = 0; i < count; i++)
		params->e820_table[i] = (struct boot_e820_entry){
			.addr = map[i].address, .size = map[i].size, .type = map[i].type};
}

static int check_setup_header(const struct setup_header *header, struct error *error)
{
	if (header->version < PROTOCOL_LEAST || !(header->xloadflags & XLF_KERNEL_64))
		return error_set(error, EINVAL,
			"The kernel is a bzImage without a 64-bit entry (boot protocol %u.%02u); Ferry "
			"starts 64-bit "
			"kernels from Linux 3.8 on.",
			header->version >> 8, header->version & 0xffu);
	if (header->kernel_alignment == 0 || header->kernel_alignment & (header->kernel_alignment - 1))
		return error_set(error, EINVAL, "The kernel's header is damaged: an alignment of %u.",
			header->kernel_alignment);
	return 0;
}

/* Where the kernel goes: where it wants to be, or, if it can be elsewhere, as low as it can be. */
static int place_kernel(const struct memory *memory, const struct setup_header *header, uint64_t size,
	uint64_t *at, struct error *error)
{
	uint64_t needs = size > header->init_size ? size : header->init_size, end = low_end(memory);

	*at = header->pref_address;
	if (*at < LAYOUT_HIGH || *at > end || needs > end - *at) {
		if (!header->relocatable_kernel)
			return too_small(memory, header->pref_address + needs, error);
		*at = ALIGN_UP(LAYOUT_HIGH, (uint64_t)header->kernel_alignment);
	}
	return *at > end || needs > end - *at ? too_small(memory, *at + needs, error) : 0;
}

static int load_bzimage(struct memory *memory, const struct file *kernel, int ramdisk_fd,
	const char *command_line, struct boot_entry *entry, struct error *error)
{
	struct setup_header header = {0};
	uint64_t setup_size, size, at = 0;
	struct start_module ramdisk = {0};
	uint8_t jump[2] = {0};
	size_t header_size;
	int r = read_at(kernel, 0x200, jump, sizeof(jump), error);

	if (r < 0)
		return r;
	/* The header ends where the jump over it goes: its second byte, from 0x202 on (boot.rst, "Details").
	 */
	header_size = 0x202u + jump[1] - SETUP_HEADER;
	if (header_size > sizeof(header))
		header_size = sizeof(header);
	r = read_at(kernel, SETUP_HEADER, &header, header_size, error);
	if (r == 0)
		r = check_setup_header(&header, error);
	if (r < 0)
		return r;
	setup_size = ((header.setup_sects ? header.setup_sects : 4u) + 1u) * 512ull;
	if (kernel->size <= setup_size + ENTRY_64)
		return error_set(
			error, EINVAL, "The kernel is cut short: it has no more than its setup code.");
	size = kernel->size - setup_size;
	if (size + SYSSIZE_UNIT <= header.syssize * SYSSIZE_UNIT)
		return error_set(error, EINVAL,
			"The kernel is cut short: it has %llu bytes where its header says %llu.",
			(unsigned long long)kernel->size,
			(unsigned long long)(setup_size + header.syssize * SYSSIZE_UNIT));
	r = place_kernel(memory, &header, size, &at, error);
	if (r == 0)
		r = load_at(memory, kernel, setup_size, at, size, error);
	if (r == 0)
		r = load_command_line(memory, command_line, header.cmdline_size, error);
	if (r == 0)
		r = load_ramdisk(memory, ramdisk_fd, at + (size > header.init_size ? size : header.init_size),
			header.initrd_addr_max + 1ull, &ramdisk, error);
	if (r < 0)
		return r;
	write_boot_params(memory, &header, &ramdisk);
	*entry = (struct boot_entry){BOOT_64BIT, at + ENTRY_64, LAYOUT_BOOT_PARAMS};
	return 0;
}

/* Looks for the PVH entry among the notes; 0 in *rip where there is none. Notes: ELF specification, "Note
 * Section". */
static int find_pvh_entry(
	const struct file *kernel, const Elf64_Phdr *segment, uint64_t *rip, struct error *error)
{
	_cleanup_free_ uint8_t *notes = NULL;
	uint64_t at = 0;
	int r;

	if (segment->p_filesz > NOTES_MAX)
		return error_set(error, EINVAL, "The kernel is damaged: its notes have %llu bytes.",
			(unsigned long long)segment->p_filesz);
	notes = malloc(segment->p_filesz + 1);
	if (!notes)
		return error_set(error, ENOMEM, "Out of memory while reading the kernel.");
	r = read_at(kernel, segment->p_offset, notes, segment->p_filesz, error);
	if (r < 0)
		return r;
	while (segment->p_filesz - at >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr note;
		uint64_t name, content;

		memcpy(&note, notes + at, sizeof(note));
		name = at + sizeof(note);
		content = name + ALIGN_UP((uint64_t)note.n_namesz, 4);
		at = content + ALIGN_UP((uint64_t)note.n_descsz, 4);
		if (at > segment->p_filesz)
			return 0;
		if (note.n_type == NOTE_PVH && note.n_namesz == 4 && memcmp(notes + name, "Xen", 4) == 0 &&
			note.n_descsz >= 4)
			memcpy(rip, notes + content, note.n_descsz >= 8 ? 8 : 4);
	}
	return 0;
}

static int load_segment(struct memory *memory, const struct file *kernel, const Elf64_Phdr *segment,
	uint64_t *end, struct error *error)
{
	void *at;

	if (segment->p_memsz == 0)
		return 0;
	if (segment->p_filesz > segment->p_memsz || segment->p_paddr < LAYOUT_HIGH)
		return error_set(error, EINVAL, "The kernel is damaged: a segment for address 0x%llx.",
			(unsigned long long)segment->p_paddr);
	if (segment->p_paddr > low_end(memory) || segment->p_memsz > low_end(memory) - segment->p_paddr)
		return too_small(memory,
			segment->p_memsz < UINT32_MAX ? segment->p_paddr + segment->p_memsz : UINT32_MAX,
			error);
	at = memory_at(memory, segment->p_paddr, segment->p_memsz);
	memset((uint8_t *)at + segment->p_filesz, 0, segment->p_memsz - segment->p_filesz);
	if (segment->p_paddr + segment->p_memsz > *end)
		*end = segment->p_paddr + segment->p_memsz;
	return load_at(memory, kernel, segment->p_offset, segment->p_paddr, segment->p_filesz, error);
}

static void write_start_info(struct memory *memory, const struct start_module *ramdisk)
{
	struct start_page *page = memory_at(memory, LAYOUT_START_INFO, sizeof(*page));

	*page = (struct start_page){.ramdisk = *ramdisk};
	page->info = (struct start_info){.magic = START_MAGIC,
		.version = 1,
		.module_count = ramdisk->size ? 1 : 0,
		.modules = LAYOUT_START_INFO + offsetof(struct start_page, ramdisk),
		.command_line = LAYOUT_COMMAND_LINE,
		.rsdp = LAYOUT_ACPI,
		.memory_map = LAYOUT_START_INFO + offsetof(struct start_page, map),
		.memory_map_count = list_memory(memory, page->map)};
}

static int load_elf(struct memory *memory, const struct file *kernel, int ramdisk_fd,
	const char *command_line, struct boot_entry *entry, struct error *error)
{
	Elf64_Phdr segments[SEGMENTS_MAX] = {0};
	struct start_module ramdisk = {0};
	Elf64_Ehdr head = {0};
	uint64_t end = LAYOUT_HIGH, rip = 0;
	int r = read_at(kernel, 0, &head, sizeof(head), error);

	if (r < 0)
		return r;
	if (head.e_ident[EI_CLASS] != ELFCLASS64 || head.e_ident[EI_DATA] != ELFDATA2LSB ||
		head.e_machine != EM_X86_64 || head.e_phentsize != sizeof(segments[0]) || head.e_phnum == 0 ||
		head.e_phnum > SEGMENTS_MAX)
		return error_set(error, EINVAL, "The kernel is an ELF file, but not a 64-bit x86 program.");
	r = read_at(kernel, head.e_phoff, segments, head.e_phnum * sizeof(segments[0]), error);
	for (unsigned i = 0; i < head.e_phnum && r == 0; i++)
		if (segments[i].p_type == PT_LOAD)
			r = load_segment(memory, kernel, &segments[i], &end, error);
		else if (segments[i].p_type == PT_NOTE)
			r = find_pvh_entry(kernel, &segments[i], &rip, error);
	if (r < 0)
		return r;
	if (rip < LAYOUT_HIGH || rip >= end)
		return error_set(error, EINVAL,
			"The kernel is an ELF file without a PVH entry. Linux has one with CONFIG_PVH; a "
			"bzImage needs none.");
	r = load_command_line(memory, command_line, LAYOUT_COMMAND_LINE_MAX, error);
	if (r == 0)
		r = load_ramdisk(memory, ramdisk_fd, end, UINT32_MAX, &ramdisk, error);
	if (r < 0)
		return r;
	write_start_info(memory, &ramdisk);
	*entry = (struct boot_entry){BOOT_PVH, rip, LAYOUT_START_INFO};
	return 0;
}

int boot_load(struct memory *memory, int kernel_fd, int ramdisk_fd, const char *command_line,
	struct boot_entry *entry, struct error *error)
{
	uint8_t first[1024] = {0};
	struct file kernel = {0};
	uint32_t magic;
	uint16_t flag;
	int r = open_file(&kernel, kernel_fd, "kernel", error);

	if (r < 0)
		return r;
	if (low_end(memory) < 2 * MIB)
		return too_small(memory, 16 * MIB, error);
	r = kernel.size < sizeof(first) ? 0 : read_at(&kernel, 0, first, sizeof(first), error);
	if (r < 0)
		return r;
	memcpy(&flag, first + 0x1fe, sizeof(flag));
	memcpy(&magic, first + 0x202, sizeof(magic));
	if (flag == BOOT_FLAG && magic == HEADER_MAGIC)
		r = load_bzimage(memory, &kernel, ramdisk_fd, command_line, entry, error);
	else if (memcmp(first, ELFMAG, SELFMAG) == 0)
		r = load_elf(memory, &kernel, ramdisk_fd, command_line, entry, error);
	else
		return error_set(error, EINVAL,
			"The kernel is no kernel: it is neither a Linux bzImage nor an ELF file.");
	if (r == 0) {
		write_page_tables(memory);
		write_gdt(memory, entry->mode);
	}
	return r;
}

void boot_registers(const struct boot_entry *entry, struct kvm_regs *regs, struct kvm_sregs *sregs)
{
	bool wide = entry->mode == BOOT_64BIT;
	const struct kvm_segment code = {.limit = 0xffffffff,
		.selector = 0x10,
		.type = 0xb,
		.present = 1,
		.db = !wide,
		.s = 1,
		.l = wide,
		.g = 1};
	const struct kvm_segment data = {
		.limit = 0xffffffff, .selector = 0x18, .type = 0x3, .present = 1, .db = 1, .s = 1, .g = 1};

	*regs = (struct kvm_regs){.rip = entry->rip, .rflags = 2, .rsp = LAYOUT_STACK};
	if (wide)
		regs->rsi = entry->parameters;
	else
		regs->rbx = entry->parameters;
	sregs->cs = code;
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
	sregs->tr = (struct kvm_segment){.limit = 0x67, .selector = 0x20, .type = 0xb, .present = 1};
	sregs->gdt = (struct kvm_dtable){.base = LAYOUT_GDT, .limit = 5 * 8 - 1};
	sregs->idt = (struct kvm_dtable){0};
	sregs->cr0 = wide ? 0x80050033 : 0x11; /* PG AM WP NE ET MP PE; PVH: ET PE */
	sregs->cr3 = wide ? LAYOUT_PAGE_TABLES : 0;
	sregs->cr4 = wide ? 0x20 : 0;   /* PAE */
	sregs->efer = wide ? 0x500 : 0; /* LMA LME */
}
