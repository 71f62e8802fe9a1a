// SPDX-License-Identifier: Apache-2.0

package conform

import "embed"

//go:embed testdata/*.txt
var scenarios embed.FS

// Scenarios holds the committed scenarios, in its directory testdata.
func Scenarios() embed.FS { return scenarios }
