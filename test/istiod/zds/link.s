// SPDX-License-Identifier: Apache-2.0

// This file lets the package declare functions without a body.
