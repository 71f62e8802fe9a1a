// SPDX-License-Identifier: Apache-2.0

// Package conflist puts a plugin at the end of a node's CNI network
// configuration, keeps it there while others write that file, and takes it out.
//
// Runtimes use the first file of a directory by name (containerd and CRI-O both
// sort). Files are replaced by rename, so that a runtime sees the one or the
// other; nothing but the plugin's own entry is changed in meaning.
package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ErrNone means that the directory has no network configuration yet.
var ErrNone = errors.New("no network configuration (*.conflist) is there yet")

// A Plugin is an entry; it must have a type, which names it.
type Plugin map[string]any

func (p Plugin) kind() string {
	kind, _ := p["type"].(string)
	return kind
}

// Insert puts a plugin at the end of the network configuration that the runtime
// uses, in the place of one of its type, and takes it out of the others. It
// reports the file, and whether any had to be changed.
func Insert(dir string, plugin Plugin) (file string, changed bool, err error) {
	files, err := configurations(dir)
	if err != nil {
		return "", false, err
	}
	if len(files) == 0 {
		return "", false, fmt.Errorf("%s: %w", dir, ErrNone)
	}
	if strings.HasSuffix(files[0], ".conf") || strings.HasSuffix(files[0], ".json") {
		return "", false, fmt.Errorf("%s: it is a single plugin's configuration, to which no other can be chained; make it a .conflist", files[0])
	}
	changed, err = edit(files[0], plugin.kind(), plugin)
	if err != nil {
		return "", false, err
	}
	for _, other := range files[1:] {
		did, err := removeFrom(other, plugin.kind())
		changed = changed || did
		if err != nil {
			return "", changed, err
		}
	}
	return files[0], changed, nil
}

// Remove takes plugins of a type out of all network configurations, and reports
// whether there were any. What is no such file is left alone.
func Remove(dir, kind string) (bool, error) {
	files, err := configurations(dir)
	removed := false
	errs := []error{err}
	for _, file := range files {
		did, err := removeFrom(file, kind)
		removed = removed || did
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

func removeFrom(file, kind string) (bool, error) {
	if !strings.HasSuffix(file, ".conflist") {
		return false, nil
	}
	text, err := os.ReadFile(file)
	if err != nil || !bytes.Contains(text, []byte(kind)) {
		return false, err
	}
	return edit(file, kind, nil)
}

// configurations are the files that a runtime would consider, in its order.
func configurations(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, fmt.Errorf("CNI configurations: %w", err)
	}
	var files []string
	for _, e := range entries {
		if slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(e.Name())) && !e.IsDir() {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, nil
}

// edit rewrites a file if it has to be.
func edit(file, kind string, plugin Plugin) (bool, error) {
	before, err := os.ReadFile(file)
	if err != nil {
		return false, fmt.Errorf("CNI configuration: %w", err)
	}
	after, err := apply(before, kind, plugin)
	if err != nil {
		return false, fmt.Errorf("CNI configuration %s: %w", file, err)
	}
	if after == nil {
		return false, nil
	}
	st, err := os.Stat(file)
	if err != nil {
		return false, fmt.Errorf("CNI configuration: %w", err)
	}
	return true, Replace(file, bytes.NewReader(after), st.Mode().Perm())
}

// apply is a configuration with plugin, or with nil none, as its last entry of
// the type; nil if it is so already.
func apply(conf []byte, kind string, plugin Plugin) ([]byte, error) {
	var whole map[string]json.RawMessage
	if err := json.Unmarshal(conf, &whole); err != nil {
		return nil, err
	}
	var plugins []json.RawMessage
	if err := json.Unmarshal(whole["plugins"], &plugins); err != nil {
		return nil, fmt.Errorf("plugins: %w", err)
	}
	if len(plugins) == 0 {
		return nil, errors.New("plugins: there is none")
	}
	kept := make([]json.RawMessage, 0, len(plugins)+1)
	for i, p := range plugins {
		var named struct{ Type string }
		if err := json.Unmarshal(p, &named); err != nil {
			return nil, fmt.Errorf("plugins: number %d: %w", i+1, err)
		}
		if named.Type != kind {
			kept = append(kept, p)
		}
	}
	if plugin != nil {
		own, err := json.Marshal(plugin)
		if err != nil {
			return nil, err
		}
		kept = append(kept, own)
	}
	if len(kept) == 0 {
		return nil, errors.New("plugins: there is none but ours")
	}
	if slices.EqualFunc(plugins, kept, sameJSON) {
		return nil, nil
	}
	var err error
	if whole["plugins"], err = json.Marshal(kept); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(whole, "", "  ")
	return append(text, '\n'), err
}

// sameJSON compares without regard to white space. Our own entry is written
// with its keys in order.
func sameJSON(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

// Replace makes a file of what content gives: whoever opens it sees the old or
// the new one whole. The name of the file that comes before it ends in nothing
// that a runtime would read.
func Replace(file string, content io.Reader, mode os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".zagent-*")
	if err != nil {
		return fmt.Errorf("replace %s: %w", file, err)
	}
	_, err = io.Copy(tmp, content)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if closed := tmp.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		os.Remove(tmp.Name())
		return fmt.Errorf("replace %s: %w", file, err)
	}
	return nil
}
