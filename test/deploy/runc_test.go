// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	runtime "github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/privileged"
)

func TestMain(m *testing.M) {
	if template := os.Getenv(templateVariable); template != "" {
		fmt.Fprintln(os.Stderr, contain(template)) // returns only if it failed
		os.Exit(1)
	}
	netlab.Main()
	os.Exit(m.Run())
}

// tool finds a program of Debian's.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	if err != nil {
		privileged.Lacking(t, fmt.Errorf("needs %s: %w", name, err))
	}
	return path
}

func needTools(t *testing.T) {
	t.Helper()
	privileged.Need(t)
	tool(t, "buildah")
	tool(t, "runc")
}

// A template is how a proxy's process becomes a container: the rig starts this
// test's own program in the namespace of a node, which turns into runc with the
// arguments and the environment that it was given.
type template struct {
	Runc   string // the program
	State  string // runc's directory
	Cgroup string // the lab's, which programs are attached to
	Spec   *runtime.Spec
}

// templateVariable names the template's file.
const templateVariable = "ZTUNNEL_TEST_CONTAINER"

// contain turns this process into runc.
func contain(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var tmpl template
	if err := json.Unmarshal(text, &tmpl); err != nil {
		return err
	}
	spec := tmpl.Spec
	spec.Process.Args = append(spec.Process.Args, os.Args[1:]...)
	for _, pair := range os.Environ() {
		if !strings.HasPrefix(pair, templateVariable+"=") {
			spec.Process.Env = append(spec.Process.Env, pair)
		}
	}
	id := fmt.Sprintf("ztunnel-test-%d", os.Getpid())
	bundle := filepath.Join(filepath.Dir(file), id)
	spec.Linux.CgroupsPath = filepath.Join("/", tmpl.Cgroup, id)
	text, err = json.Marshal(spec)
	if err == nil {
		err = os.Mkdir(bundle, 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o600)
	}
	if err != nil {
		return err
	}
	return syscall.Exec(tmpl.Runc, []string{"runc", "--root", tmpl.State, "run", "--bundle", bundle, id}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"})
}

// allCapabilities is what a privileged container has: all that there are on this
// machine, in the order of their numbers.
func allCapabilities(t *testing.T) []string {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	_, rest, _ := strings.Cut(string(status), "CapBnd:")
	set, err := strconv.ParseUint(strings.Fields(rest)[0], 16, 64)
	must(t, err)
	var held []string
	for i, name := range strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
		NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
		SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
		WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`) {
		if set>>i&1 != 0 {
			held = append(held, "CAP_"+name)
		}
	}
	return held
}

// containerOf is what a container runtime of Kubernetes makes of the only
// container of a pod. binds has the sources of volumes by their names, or of other files by where
// they are to be; a volume without a source is left out.
func containerOf(t *testing.T, pod corev1.PodSpec, img unpacked, binds map[string]string) *runtime.Spec {
	t.Helper()
	c := pod.Containers[0]
	security := c.SecurityContext
	isPrivileged := security.Privileged != nil && *security.Privileged
	spec := &runtime.Spec{
		Version: "1.0.2",
		Root:    &runtime.Root{Path: img.rootfs, Readonly: *security.ReadOnlyRootFilesystem},
		Process: &runtime.Process{
			User: runtime.User{UID: uint32(*security.RunAsUser), GID: uint32(*security.RunAsGroup)},
			Args: slices.Clone(img.config.Entrypoint), Cwd: "/",
			NoNewPrivileges: security.AllowPrivilegeEscalation != nil && !*security.AllowPrivilegeEscalation,
		},
		Mounts: mounts(t, c, isPrivileged, binds),
		Linux: &runtime.Linux{
			Namespaces: []runtime.LinuxNamespace{
				// Of the network it is the one that the process is started in.
				{Type: runtime.MountNamespace}, {Type: runtime.IPCNamespace}, {Type: runtime.UTSNamespace}, {Type: runtime.CgroupNamespace},
			},
			Resources: &runtime.LinuxResources{Devices: []runtime.LinuxDeviceCgroup{{Allow: isPrivileged, Access: "rwm"}}},
		},
	}
	if !pod.HostPID {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, runtime.LinuxNamespace{Type: runtime.PIDNamespace})
	}
	held := allCapabilities(t)
	if !isPrivileged {
		held = nil
		for _, name := range security.Capabilities.Add {
			held = append(held, "CAP_"+string(name))
		}
		// What containerd and CRI-O hide and protect.
		spec.Linux.MaskedPaths = []string{
			"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
			"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
		}
		spec.Linux.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	}
	spec.Process.Capabilities = &runtime.LinuxCapabilities{Bounding: held, Effective: held, Permitted: held}
	return spec
}

// mounts are those that every container has, and the volumes'.
func mounts(t *testing.T, c corev1.Container, isPrivileged bool, binds map[string]string) []runtime.Mount {
	t.Helper()
	access := "ro"
	if isPrivileged {
		access = "rw"
	}
	list := []runtime.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
	for _, m := range c.VolumeMounts {
		source, ok := binds[m.Name]
		if !ok {
			continue
		}
		access := "rw"
		if m.ReadOnly {
			access = "ro"
		}
		list = append(list, runtime.Mount{Destination: m.MountPath, Type: "bind", Source: source, Options: []string{"rbind", "rprivate", access}})
	}
	for _, at := range slices.Sorted(maps.Keys(binds)) { // what no volume has
		if strings.HasPrefix(at, "/") {
			list = append(list, runtime.Mount{Destination: at, Type: "bind", Source: binds[at], Options: []string{"bind", "ro"}})
		}
	}
	return list
}

// write keeps a template in a directory of its own, and returns the file's path.
func (tmpl template) write(t *testing.T) string {
	t.Helper()
	text, err := json.Marshal(tmpl)
	must(t, err)
	file := filepath.Join(t.TempDir(), "template.json")
	must(t, os.WriteFile(file, text, 0o600))
	return file
}

// remove ends what is left of containers of a state directory.
func remove(runc, state string) error {
	left, err := os.ReadDir(state)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, c := range left {
		if out, err := exec.Command(runc, "--root", state, "delete", "--force", c.Name()).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("%w: %s", err, out))
		}
	}
	return errors.Join(errs...)
}

// removeParents removes the cgroup of a lab from the hierarchies of version 1,
// where runc has made it above its own. The lab knows that of version 2 alone.
func removeParents(cgroup string) error {
	dirs, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", "*", cgroup))
	for _, dir := range dirs {
		if filepath.Base(filepath.Dir(dir)) != "unified" {
			err = errors.Join(err, os.Remove(dir))
		}
	}
	return err
}
