// SPDX-License-Identifier: Apache-2.0

package static

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A Workload is one entry of the file: who it is in the mesh, and where its
// network namespace is found. Exactly one of NetNS, PID, Cgroup and Unit is
// set.
type Workload struct {
	Line                            int // of the file, for errors
	Name, Namespace, ServiceAccount string

	NetNS  string // a name below /run/netns, or an absolute path
	PID    int    // a process in it
	Cgroup string // of a container, from the root of cgroups
	Unit   string // of systemd, with a network namespace of its own
}

// UID is what proxies call the workload.
func (w Workload) UID() string { return "static/" + w.Namespace + "/" + w.Name }

// maxName bounds names, in bytes; it is that of names in the Kubernetes API,
// which they are compared with.
const maxName = 253

// Parse reads a file. Errors name the line.
func Parse(text []byte) ([]Workload, error) {
	var file struct {
		Workloads []yaml.Node `yaml:"workloads"`
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("it is empty: workloads is missing")
		}
		return nil, err
	}
	if err := d.Decode(&struct{}{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("it has more than one document")
	}
	var all []Workload
	lines := map[string]int{}
	for i := range file.Workloads {
		w, err := parseWorkload(&file.Workloads[i])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", file.Workloads[i].Line, err)
		}
		if before, ok := lines[w.UID()]; ok {
			return nil, fmt.Errorf("line %d: workload %s/%s is in line %d already", w.Line, w.Namespace, w.Name, before)
		}
		lines[w.UID()] = w.Line
		all = append(all, w)
	}
	return all, nil
}

func parseWorkload(node *yaml.Node) (Workload, error) {
	if node.Kind != yaml.MappingNode {
		return Workload{}, errors.New("a workload is a list of fields, such as name: web")
	}
	w := Workload{Line: node.Line, Namespace: "default", ServiceAccount: "default"}
	seen := map[string]bool{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if seen[key.Value] {
			return w, fmt.Errorf("%s is there twice", key.Value)
		}
		seen[key.Value] = true
		if err := w.set(key.Value, value); err != nil {
			return w, err
		}
	}
	places := 0
	for _, there := range []bool{w.NetNS != "", w.PID != 0, w.Cgroup != "", w.Unit != ""} {
		if there {
			places++
		}
	}
	switch {
	case w.Name == "":
		return w, errors.New("name is missing")
	case places != 1:
		return w, fmt.Errorf("workload %s has %d of netns, pid, cgroup and unit, and must have one", w.Name, places)
	}
	return w, nil
}

func (w *Workload) set(key string, value *yaml.Node) error {
	if value.Kind != yaml.ScalarNode || value.Value == "" || value.Tag == "!!null" {
		return fmt.Errorf("%s has no value", key)
	}
	text := value.Value
	names := map[string]*string{"name": &w.Name, "namespace": &w.Namespace, "serviceAccount": &w.ServiceAccount}
	if field := names[key]; field != nil {
		if len(text) > maxName || strings.ContainsAny(text, "/ \t\n") {
			return fmt.Errorf("%s %.60q is no name", key, text)
		}
		*field = text
		return nil
	}
	switch key {
	case "netns":
		if !strings.HasPrefix(text, "/") && strings.Contains(text, "/") || text == "." || text == ".." {
			return fmt.Errorf("netns %q is neither a name nor an absolute path", text)
		}
		w.NetNS = text
	case "pid":
		pid, err := strconv.Atoi(text)
		if err != nil || pid <= 0 {
			return fmt.Errorf("pid %q is no process", text)
		}
		w.PID = pid
	case "cgroup":
		if !strings.HasPrefix(text, "/") || slices.Contains(strings.Split(text, "/"), "..") {
			return fmt.Errorf("cgroup %q is no path from the root of cgroups", text)
		}
		w.Cgroup = text
	case "unit":
		if strings.Contains(text, "/") || !strings.Contains(text, ".") {
			return fmt.Errorf("unit %q is no unit's name, such as web.service", text)
		}
		w.Unit = text
	default:
		return fmt.Errorf("no field is called %.60q", key)
	}
	return nil
}
