/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0 */
/* The smallest module: shows that modules can be built and loaded. */
#include <linux/module.h>

static int __init hello_init(void)
{
	pr_info("hello from a module\n");
	return 0;
}

static void __exit hello_exit(void)
{
}

module_init(hello_init);
module_exit(hello_exit);
MODULE_LICENSE("Dual MIT/GPL");
