// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// writeSysctl sets net/name of the network namespace that the calling thread is
// in. Containers that are not privileged see /proc/sys read-only, whatever
// namespace they enter; there a proc file system of our own is used, mounted
// nowhere, which takes CAP_SYS_ADMIN and Linux 5.2.
func writeSysctl(name, value string) error {
	path := "sys/net/" + name
	err := os.WriteFile("/proc/"+path, []byte(value), 0)
	if !errors.Is(err, unix.EROFS) {
		return err
	}
	proc, ownErr := ownProc()
	if ownErr != nil {
		return fmt.Errorf("%w, and no proc file system of our own is to be had: %w", err, ownErr)
	}
	defer unix.Close(proc)
	fd, ownErr := unix.Openat(proc, path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if ownErr != nil {
		return &os.PathError{Op: "open, in a proc file system of our own,", Path: path, Err: ownErr}
	}
	f := os.NewFile(uintptr(fd), path)
	_, ownErr = f.WriteString(value)
	return errors.Join(ownErr, f.Close())
}

// ownProc is the root of a new proc file system. It ends with the descriptor.
func ownProc() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, os.NewSyscallError("fsconfig", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	return root, os.NewSyscallError("fsmount", err)
}
