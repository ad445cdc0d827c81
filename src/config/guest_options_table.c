/* The options of a guest configuration. Names and defaults are Xen 3's (xmdomain.cfg(5)). */
#include "config/guest_options.h"

#include "base/cleanup.h"

#include <string.h>

#define AT(member) .offset = offsetof(struct guest_config, member)
#define IN_DOMAIN .section = SHOWN_IN_DOMAIN
#define IN_IMAGE .section = SHOWN_IN_IMAGE
#define NO_SCREEN "guests have a text console (xm console), no screen"
#define PARAVIRTUAL "guests have virtio devices and none of QEMU's"
#define MEMORY_MAX (UINT64_C(16) * 1024 * 1024) /* MiB: 16 TiB */

#define KEPT(option_name, help_text, why)                                                                    \
	{                                                                                                    \
		.name = (option_name), .kind = OPTION_KEPT, .help = (help_text), .without_effect = (why)     \
	}

const struct guest_option guest_options[] = {
	{"name", OPTION_NAME, AT(name), IN_DOMAIN,
		.help = "name of the domain; the file's name when not given"},
	{"uuid", OPTION_UUID, AT(uuid), IN_DOMAIN, .help = "identity of the domain; drawn when not given"},
	{"kernel", OPTION_PATH, AT(kernel), IN_IMAGE, .help = "kernel: a bzImage or a PVH ELF file"},
	{"ramdisk", OPTION_PATH, AT(ramdisk), IN_IMAGE, .help = "initial ramdisk"},
	{"root", OPTION_TEXT, AT(root), IN_IMAGE, .most = 1024, .help = "root= of the kernel's command line"},
	{"extra", OPTION_TEXT, AT(extra), IN_IMAGE, .most = 2048, .shown_as = "args",
		.help = "more words for the kernel's command line"},
	{"memory", OPTION_NUMBER, AT(memory), IN_DOMAIN, .least = 16, .most = MEMORY_MAX, .fallback = 128,
		.help = "memory in MiB"},
	{"maxmem", OPTION_NUMBER, AT(maxmem), IN_DOMAIN, .least = 16, .most = MEMORY_MAX,
		.help = "most memory the domain may ever have, in MiB",
		.without_effect = "the domain gets what memory= says"},
	{"vcpus", OPTION_NUMBER, AT(vcpus), IN_DOMAIN, .least = 1, .most = 128, .fallback = 1,
		.help = "number of virtual CPUs"},
	{"vcpu_avail", OPTION_NUMBER, AT(vcpu_avail), IN_DOMAIN, .least = 1, .most = INT64_MAX,
		.help = "mask of the virtual CPUs that are there at the start",
		.without_effect = "all virtual CPUs are there from the start"},
	{"cpus", OPTION_CPUS, AT(cpus), IN_DOMAIN, .help = "host CPUs to run on, as \"0-3,^1\"",
		.without_effect = "the host's scheduler chooses the CPUs"},
	{"cpu_weight", OPTION_NUMBER, AT(cpu_weight), IN_DOMAIN, .least = 1, .most = 65535, .fallback = 256,
		.help = "share of CPU time, 256 being usual",
		.without_effect = "all domains have the same weight"},
	{"cpu_cap", OPTION_NUMBER, AT(cpu_cap), IN_DOMAIN, .least = 0, .most = 12800,
		.help = "most CPU time, in percent of one CPU; 0: no limit",
		.without_effect = "no cap is set"},

	{"disk", OPTION_DISKS,
		.help = "disks: [\"phy:/dev/vg/guest,xvda,w\", \"file:/srv/cd.iso,xvdb:cdrom,r\"]"},
	{"on_disk_full", OPTION_WORD, AT(on_disk_full), IN_DOMAIN, .choices = "hold|error",
		.help = "what happens when the domain writes and the host's storage is full"},
	{"disk_discard", OPTION_WORD, AT(disk_discard), IN_DOMAIN, .choices = "on|off",
		.help = "whether what the domain discards of its disks is given back to the host"},
	{"vif", OPTION_VIFS, .help = "network interfaces: [\"mac=00:16:3e:…, bridge=xenbr0\", \"\"]"},
	{"nics", OPTION_NICS, .most = GUEST_VIFS_MAX,
		.help = "number of network interfaces, with vif=[…] for the first"},

	{"ip", OPTION_ADDRESS, AT(ip), IN_IMAGE, .help = "IP address that the kernel gives itself"},
	{"netmask", OPTION_ADDRESS, AT(netmask), IN_IMAGE, .help = "its netmask"},
	{"gateway", OPTION_ADDRESS, AT(gateway), IN_IMAGE, .help = "its gateway"},
	{"hostname", OPTION_WORD, AT(hostname), IN_IMAGE, .most = 253, .help = "its host name"},
	{"interface", OPTION_WORD, AT(interface), IN_IMAGE, .most = 15,
		.help = "the interface it uses, eth0"},
	{"dhcp", OPTION_WORD, AT(dhcp), IN_IMAGE, .choices = "dhcp|bootp|rarp|on|off|both|any|no",
		.help = "how the kernel finds its address"},
	{"nfs_server", OPTION_ADDRESS, AT(nfs_server), IN_IMAGE,
		.help = "NFS server with the root file system"},
	{"nfs_root", OPTION_WORD, AT(nfs_root), IN_IMAGE, .most = 1024, .help = "directory on it"},

	{"on_poweroff", OPTION_ACTION, AT(on_poweroff), IN_DOMAIN, .fallback = ACTION_DESTROY,
		.help = "what happens when the domain powers off"},
	{"on_reboot", OPTION_ACTION, AT(on_reboot), IN_DOMAIN, .fallback = ACTION_RESTART,
		.help = "what happens when it reboots"},
	{"on_crash", OPTION_ACTION, AT(on_crash), IN_DOMAIN, .fallback = ACTION_RESTART,
		.help = "what happens when it crashes"},
	{"on_xend_start", OPTION_WORD, AT(on_xend_start), IN_DOMAIN, .choices = "ignore|start",
		.help = "what happens when the host starts: xendomains(8)"},
	{"on_xend_stop", OPTION_WORD, AT(on_xend_stop), IN_DOMAIN,
		.choices = "ignore|shutdown|suspend|destroy",
		.help = "what happens when the host stops: xendomains(8)"},

	{"clock_over_pause", OPTION_WORD, AT(clock_over_pause), IN_DOMAIN, .choices = "catch-up|jump|stop",
		.help = "how the domain's time makes up for a pause, a save or a move"},

	{"bootloader", OPTION_TEXT, AT(bootloader), IN_DOMAIN, .most = 1024,
		.help = "program that takes the kernel from the domain's disk",
		.without_effect = "the kernel is the file that kernel= names"},
	{"bootargs", OPTION_TEXT, AT(bootargs), IN_DOMAIN, .most = 1024, .shown_as = "bootloader_args",
		.help = "its arguments"},
	{"bootentry", OPTION_TEXT, AT(bootentry), .most = 1024, .help = "the entry it shall choose"},

	KEPT("builder", "kind of domain: linux or generic", NULL),
	KEPT("boot", "order of boot devices (hvm)", PARAVIRTUAL),
	KEPT("localtime", "clock in local time (hvm)", "the clock is in UTC"),
	KEPT("rtc_timeoffset", "offset of the clock (hvm)", "the clock is the host's"),
	KEPT("nographic", "no screen", NULL),
	KEPT("vfb", "screens", NO_SCREEN),
	KEPT("vnc", "screen over VNC", NO_SCREEN),
	KEPT("vnclisten", "address of the VNC server", NULL),
	KEPT("vncunused", "take a free VNC port", NULL),
	KEPT("vncdisplay", "number of the VNC display", NULL),
	KEPT("vncconsole", "open a viewer at the start", NO_SCREEN),
	KEPT("vncviewer", "open a viewer at the start", NO_SCREEN),
	KEPT("vncpasswd", "password of the VNC server", NULL),
	KEPT("sdl", "screen in a window", NO_SCREEN),
	KEPT("opengl", "draw with OpenGL", NULL),
	KEPT("display", "X display", NULL),
	KEPT("xauthority", "X authority file", NULL),
	KEPT("stdvga", "standard VGA (hvm)", NO_SCREEN),
	KEPT("videoram", "memory of the screen (hvm)", NULL),
	KEPT("keymap", "keyboard layout", NULL),
	KEPT("serial", "where the serial line goes (hvm)", NULL),
	KEPT("monitor", "QEMU's monitor (hvm)", PARAVIRTUAL),
	KEPT("usb", "USB controller (hvm)", PARAVIRTUAL),
	KEPT("usbdevice", "USB device (hvm)", PARAVIRTUAL),
	KEPT("soundhw", "sound card (hvm)", PARAVIRTUAL),
	KEPT("device_model", "program of the device model (hvm)", PARAVIRTUAL),
	KEPT("acpi", "ACPI tables (hvm)", NULL),
	KEPT("apic", "interrupt controller (hvm)", NULL),
	KEPT("pae", "large addresses (hvm)", NULL),
	KEPT("hap", "nested paging (hvm)", NULL),
	KEPT("viridian", "Hyper-V interface (hvm)", "Ferry has no Hyper-V interface"),
	KEPT("timer_mode", "timer mode (hvm)", NULL),
	KEPT("shadow_memory", "memory for shadow pages (hvm)", NULL),
	KEPT("cpuid", "CPU features to show", "the guest sees the features that KVM offers"),
	KEPT("cpuid_check", "CPU features to check", "no CPU features are checked"),
	KEPT("tsc_mode", "time stamp counter mode", NULL),
	KEPT("features", "features the kernel must have", NULL),
	KEPT("pci", "PCI devices given to the domain", "Ferry does not hand out the host's PCI devices"),
	KEPT("ioports", "I/O ports given to the domain", "Ferry does not hand out the host's I/O ports"),
	KEPT("irq", "interrupts given to the domain", "Ferry does not hand out the host's interrupts"),
	KEPT("vscsi", "SCSI devices", "Ferry has no SCSI devices"),
	KEPT("vtpm", "trusted platform modules", "Ferry has no trusted platform module"),
	KEPT("access_control", "policy and label", "Ferry has no mandatory access control"),
	KEPT("blkif", "domain is a disk backend", "disks are the host's"),
	KEPT("netif", "domain is a network backend", "the network is the host's"),
	KEPT("tpmif", "domain is a TPM backend", "Ferry has no trusted platform module"),
	KEPT("suppress_spurious_page_faults", "hide page faults of the hypervisor", NULL),
	KEPT("machine_address_size", "width of machine addresses", NULL),
};

const size_t guest_option_count = ARRAY_SIZE(guest_options);

const struct guest_option *guest_option_find(const char *name)
{
	for (size_t i = 0; i < guest_option_count; i++)
		if (!strcmp(guest_options[i].name, name))
			return &guest_options[i];
	return NULL;
}
