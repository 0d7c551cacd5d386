rpzFile("$directory/policy.zone", {policyName="policy"})
