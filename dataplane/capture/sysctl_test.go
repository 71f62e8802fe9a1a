// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/privileged"
)

// TestSettingsAreMadeWhereProcSysIsReadOnly is on a thread that sees /proc/sys
// as a container does that is not privileged, in a namespace of its own.
func TestSettingsAreMadeWhereProcSysIsReadOnly(t *testing.T) {
	privileged.Need(t)
	const setting = "ipv4/tcp_fwmark_accept"
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the function
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
				return err
			}
			if err := unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				return err
			}
			if err := os.WriteFile("/proc/sys/net/"+setting, []byte("1"), 0); !errors.Is(err, unix.EROFS) {
				t.Errorf("the view is not read-only: %v", err)
			}
			if err := writeSysctl(setting, "1"); err != nil {
				return err
			}
			got, err := os.ReadFile("/proc/sys/net/" + setting)
			if err == nil && strings.TrimSpace(string(got)) != "1" {
				t.Errorf("%s is %q", setting, got)
			}
			if err := writeSysctl("ipv4/no_such_setting", "1"); !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EACCES) {
				t.Errorf("a setting that is not there: %v", err)
			}
			return err
		}()
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}
