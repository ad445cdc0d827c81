/*
 * Entry of the bench guests: PVH boot protocol (Xen docs/misc/pvh.pandoc, "x86/HVM direct boot ABI"):
 * 32-bit protected mode, paging off, EBX = physical address of hvm_start_info.
 *
 * Goes to long mode with the first 8 GiB mapped one to one in 2 MiB pages, then to ring 3 with
 * IOPL 3, so that it runs natively even where KVM emulates ring 0. No interrupt is ever enabled.
 */
	.section .note.pvh, "a", @note
	.long 4, 4, 18			/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long start

	.text
	.code32
	.globl start
start:
	cld
	movl %ebx, %esi			/* start_info, kept for main */
	/* Page directories: 8 × 512 entries of 2 MiB, present, writable, user, large. */
	movl $directories, %edi
	movl $0x87, %eax
	xorl %edx, %edx
1:	movl %eax, (%edi)
	movl %edx, 4(%edi)
	addl $8, %edi
	addl $0x200000, %eax
	adcl $0, %edx
	cmpl $directories + 8 * 4096, %edi
	jne 1b
	movl $pointers, %edi
	movl $directories + 7, %eax
2:	movl %eax, (%edi)
	addl $8, %edi
	addl $4096, %eax
	cmpl $pointers + 64, %edi
	jne 2b
	movl $pointers + 7, level4
	movl $level4, %eax
	movl %eax, %cr3
	movl %cr4, %eax
	orl $0x620, %eax		/* PAE, OSFXSR, OSXMMEXCPT: SDM 3, 2.5 */
	movl %eax, %cr4
	movl $0xc0000080, %ecx		/* IA32_EFER.LME */
	rdmsr
	orl $0x100, %eax
	wrmsr
	movl $0x174, %ecx		/* IA32_SYSENTER_CS: SYSEXIT loads +32 and +40 */
	movl $0x08, %eax
	xorl %edx, %edx
	wrmsr
	/* A task state segment whose I/O bitmap allows ports up to 0xcff: where IOPL does not reach ring 3. */
	movl $task, %eax
	movw %ax, task_descriptor + 2
	shrl $16, %eax
	movb %al, task_descriptor + 4
	movb %ah, task_descriptor + 7
	lgdt descriptor
	movl %cr0, %eax
	andl $~0x4, %eax		/* EM off */
	orl $0x80000003, %eax		/* PG, MP, PE */
	movl %eax, %cr0
	ljmpl $0x08, $long_mode

	.code64
long_mode:
	movl $0x10, %eax
	movl %eax, %ss
	movl %eax, %ds
	movl %eax, %es
	movl $0x38, %eax
	ltr %ax
	movl $stack_top, %esp
	movl %esi, %edi			/* main's argument */
	xorl %eax, %eax
	pushq %rdi
	cpuid
	popq %rdi
	cmpl $0x68747541, %ebx		/* "Auth": AMD's SYSEXIT is invalid in long mode (APM 3, SYSEXIT) */
	je by_iret
	pushq $0x3002			/* IOPL 3 */
	popfq
	movl $main, %edx
	movl $stack_top, %ecx
	rex.w sysexit
by_iret:
	pushq $0x33
	pushq $stack_top
	pushq $0x3002
	pushq $0x2b
	pushq $main
	iretq

	.section .data
	.balign 16
table:	/* 0x08 and 0x28 code, 0x10 and 0x30 data: ring 0 and, 32 bytes on, ring 3 (SDM 2B, SYSEXIT) */
	.quad 0
	.quad 0x00af9a000000ffff
	.quad 0x00cf92000000ffff
	.quad 0
	.quad 0
	.quad 0x00affa000000ffff
	.quad 0x00cff2000000ffff
task_descriptor: /* 0x38: available 64-bit TSS, base filled in above (SDM 3, 8.2.3) */
	.quad 0x0000890000000000 + task_end - task - 1
	.quad 0
descriptor:
	.word . - table - 1
	.long table

	.balign 16
task:	/* 64-bit TSS (SDM 3, 8.7): only the place of the I/O bitmap matters */
	.skip 102
	.word 104
	.skip 416
	.byte 0xff
task_end:
	.section .bss
	.balign 4096
level4:	.skip 4096
pointers: .skip 4096
directories: .skip 8 * 4096
	.skip 16384
stack_top:
	.section .note.GNU-stack, "", @progbits
